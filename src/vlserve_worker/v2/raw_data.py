"""Raw bytes of V2 tensors: numbers little-endian, row by row; of BYTES each element after its
length in four bytes. REST's binary data and gRPC's raw contents are both written so."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve_worker.bodies import quoted
from vlserve_worker.v2.messages import BOOL, BYTES, NUMBERS, Data, Tensor, elements_of, refused

_LENGTH = struct.Struct("<I")


def read_raw(
    name: str, datatype: str, shape: Sequence[int], raw: bytes | bytearray | memoryview
) -> Tensor:
    """Return the tensor of ``raw`` bytes.

    Raises:
        BodyRefused: they are not as many as the shape says, or no such values.
    """
    count = elements_of(name, datatype, shape)
    data: Data = (
        _elements(name, count, memoryview(raw))
        if datatype == BYTES
        else _numbers(name, datatype, count, raw)
    )
    return Tensor(name, datatype, tuple(shape), data)


def write_raw(tensor: Tensor) -> bytes:
    """Return a tensor's bytes."""
    if tensor.datatype != BYTES:
        return np.asarray(tensor.data, dtype=NUMBERS[tensor.datatype]).tobytes()
    return b"".join(
        part for element in tensor.data for part in (_LENGTH.pack(len(element)), element)
    )


def _numbers(name: str, datatype: str, count: int, raw: bytes | bytearray | memoryview) -> Data:
    kind = NUMBERS[datatype]
    if len(raw) != count * kind.itemsize:
        raise refused(
            f"{quoted(name)} has {len(raw)} bytes, its shape takes {count * kind.itemsize}"
        )
    if datatype == BOOL:
        kind = np.dtype(np.uint8)
    numbers: NDArray[Any] = np.frombuffer(raw, dtype=kind)
    return numbers.astype(np.bool_) if datatype == BOOL else numbers


def _elements(name: str, count: int, raw: memoryview) -> list[bytes]:
    if count > len(raw) // _LENGTH.size:
        raise refused(f"{quoted(name)} has fewer elements than its shape says, {count}")
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise refused(f"{quoted(name)} ends inside of an element's length")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length > len(raw) - at:
            raise refused(f"{quoted(name)} ends inside of an element")
        if len(elements) == count:
            raise refused(f"{quoted(name)} has more elements than its shape says, {count}")
        elements.append(bytes(raw[at : at + length]))
        at += length
    if len(elements) != count:
        raise refused(f"{quoted(name)} has {len(elements)} elements, its shape says {count}")
    return elements
