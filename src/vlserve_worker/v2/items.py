"""A V2 request -> the plain requests that its items are, as an archive's own code reads them.

The first axis of each input is the item. What an item has of an input becomes the field of its
name, in the bytes of a form: an element of BYTES as it is, but for files in base64, a number in
digits, several numbers as a .npy file. A parameter of the request is a field of each item.
"""

import io
import math
from collections.abc import Mapping

import numpy as np

from vlserve_worker.bodies import quoted
from vlserve_worker.v2.files import FILES, file_bytes
from vlserve_worker.v2.messages import (
    BYTES,
    MAX_PARAMETER_BYTES,
    InferRequest,
    Parameter,
    Tensor,
    check_items,
    check_most,
    refused,
)

PARTIAL = "partial"
"""The parameter with which a bad item leaves the others their answers."""

PASSED_OVER = (
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"),
    "content_type",
)
"""Parameters that clients of other servers send by themselves, and that mean nothing here."""

BODY = "body"
"""As an engine calls a whole body: no field of an item may have this name."""

Fields = dict[str, bytes]
"""Field name -> bytes, of one item."""


def is_partial(request: InferRequest) -> bool:
    """Return whether a bad item leaves the others their answers.

    Raises:
        BodyRefused: ``partial`` is neither true nor false.
    """
    partial = request.parameters.get(PARTIAL, False)
    if not isinstance(partial, bool):
        raise refused(f"the parameter {PARTIAL!r} must be true or false")
    return partial


def split_items(request: InferRequest) -> list[Fields]:
    """Return the fields of each item, in order; (items, 1) of an input counts as (items,).

    Raises:
        BodyRefused: inputs have not as many items, or more than MAX_ITEMS; a name is twice, or
            stands for nothing that an item can have.
    """
    count = _count(request.inputs)
    parameter_fields = _shared(request.parameters)
    items: list[Fields] = [dict(parameter_fields) for _ in range(count)]
    for tensor in request.inputs:
        if tensor.name == BODY:
            raise refused(f"no input is called {BODY!r}")
        if tensor.name in items[0]:
            raise refused(f"{quoted(tensor.name)} is there twice")
        for fields, value in zip(items, _values(tensor, count), strict=True):
            fields[tensor.name] = value
    return items


def _count(inputs: tuple[Tensor, ...]) -> int:
    if not inputs:
        raise refused("the request has no inputs")
    sizes = [tensor.shape[0] if tensor.shape else 0 for tensor in inputs]
    for tensor, size in zip(inputs, sizes, strict=True):
        if size != sizes[0] or not size:
            raise refused(
                f"the first size of a shape is the number of items: {quoted(inputs[0].name)} has "
                f"{sizes[0]}, {quoted(tensor.name)} {size}"
            )
    check_items(sizes[0])
    return sizes[0]


def _shared(parameters: Mapping[str, Parameter]) -> Fields:
    fields: Fields = {}
    for name, value in parameters.items():
        if name == BODY:
            raise refused(f"no parameter is called {BODY!r}")
        if name != PARTIAL and name not in PASSED_OVER:
            fields[name] = (
                value.encode("utf-8", "surrogatepass")
                if isinstance(value, str)
                else _digits(name, value)
            )
    check_most("bytes of parameters", sum(map(len, fields.values())), MAX_PARAMETER_BYTES)
    return fields


def _values(tensor: Tensor, count: int) -> list[bytes]:
    of_one = math.prod(tensor.shape[1:])
    if tensor.datatype == BYTES:
        if of_one != 1:
            raise refused(f"{quoted(tensor.name)} has {of_one} elements an item: BYTES has one")
        return [*map(file_bytes, tensor.data)] if tensor.name in FILES else list(tensor.data)
    if len(tensor.shape) == 1 or tensor.shape[1:] == (1,):
        return [_digits(tensor.name, value) for value in np.asarray(tensor.data).tolist()]
    rows = np.asarray(tensor.data).reshape(tensor.shape)
    return [_npy(rows[at]) for at in range(count)]


def _digits(name: str, value: Parameter) -> bytes:
    """Return a number or a switch as a form has it."""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise refused(f"{quoted(name)} is no finite number")
        if not value.is_integer():
            return np.format_float_positional(value, trim="-").encode()
    return str(int(value)).encode()


def _npy(row: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> bytes:
    file = io.BytesIO()
    np.save(file, row, allow_pickle=False)
    return file.getvalue()
