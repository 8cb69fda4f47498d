"""What V2 says, whatever carries it: JSON with binary data (rest.py), protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve_worker.bodies import TOO_COMPLEX, UNREADABLE, BodyRefused, quoted

BYTES, BOOL, FP32 = "BYTES", "BOOL", "FP32"
NUMBERS: Mapping[str, np.dtype[Any]] = {
    BOOL: np.dtype("bool"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    FP32: np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatype -> the numbers that it holds. BYTES alone holds none."""

MAX_INPUTS = 64
MAX_OUTPUTS = 64
MAX_DIMS = 8
MAX_SIZE = 2**31 - 1
"""Of an axis."""
MAX_PARAMETERS = 64
MAX_PARAMETER_BYTES = 256 * 1024
"""Of all parameters of a request in UTF-8: each of its items gets a copy."""
MAX_ITEMS = 64
"""Of one request. An engine batches up to `engine.batch_size` requests, so it is also what one of
them may keep the others waiting for."""

TOO_MANY_ITEMS = "too_many_items"

Parameter = str | int | float | bool
Data = Sequence[bytes] | NDArray[Any]
"""The elements of a tensor, row by row: of BYTES one ``bytes`` each, else an array (elements,)."""


@dataclass(frozen=True)
class Tensor:
    """A named array: an input of a request, an output of an answer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


@dataclass(frozen=True)
class RequestedOutput:
    """``binary``: as bytes behind the JSON; None: as the request says of all."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True)
class InferRequest:
    """``outputs``: all, where none is named. ``binary_output``: what holds for outputs that do not
    say; of REST alone."""

    inputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: tuple[RequestedOutput, ...] = ()
    binary_output: bool = False


@dataclass(frozen=True)
class InferAnswer:
    """``id``: the request's own."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """A body as a client gets it. ``json_bytes``: how much of it is JSON, where binary data follow;
    the header Inference-Header-Content-Length says so."""

    body: bytes
    content_type: str
    json_bytes: int | None = None


def refused(message: str, code: str = UNREADABLE) -> BodyRefused:
    """Return the error of a request that is not what V2 asks for."""
    return BodyRefused(message, code)


def check_most(what: str, number: int, most: int) -> None:
    """Raise BodyRefused where a request has more of something than it may."""
    if number > most:
        raise refused(f"the request has {number} {what}, the limit is {most}", TOO_COMPLEX)


def check_no_classification(parameters: Mapping[str, Parameter]) -> None:
    """Raise BodyRefused where an output's ``parameters`` ask for classes in its place."""
    if parameters.get("classification"):
        raise refused("the classification extension is not read: ask for the outputs themselves")


def check_items(number: int, name: str = "items") -> None:
    """Raise BodyRefused where a request has more items than it may; clients call them ``name``."""
    if number > MAX_ITEMS:
        raise refused(
            f"the request has {number} {name}, the limit is {MAX_ITEMS}: send them in several",
            TOO_MANY_ITEMS,
        )


def elements_of(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return how many elements an input must have. Nothing is allocated.

    Raises:
        BodyRefused: there is no such datatype or shape, or it has more items than a request may.
    """
    if datatype != BYTES and datatype not in NUMBERS:
        raise refused(f"{quoted(name)} has the datatype {quoted(datatype)}, which is not read")
    if len(shape) > MAX_DIMS:
        raise refused(f"{quoted(name)} has {len(shape)} dimensions, the limit is {MAX_DIMS}")
    count = 1
    for dim in shape:
        if dim < 0:
            raise refused(f"{quoted(name)} has a negative size in its shape")
        if dim > MAX_SIZE:
            raise refused(f"{quoted(name)} has a size in its shape that is beyond {MAX_SIZE}")
        count *= dim
    if datatype == BYTES:  # one an item; each is an object of its own
        check_items(count)
    return count
