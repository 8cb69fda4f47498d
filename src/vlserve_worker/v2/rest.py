"""V2 over HTTP: JSON, and behind it the binary data extension's bytes.

The extension: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/
inference_rest.md and Triton's extension_binary_data.md. ``Inference-Header-Content-Length`` says
how many bytes are JSON; the bytes of each tensor that has the parameter ``binary_data_size`` follow
in the order of the tensors.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlserve_worker.bodies import (
    MAX_JSON_MARKS,
    TOO_COMPLEX,
    BodyRefused,
    has_too_many_values,
    quoted,
)
from vlserve_worker.v2.messages import (
    BYTES,
    MAX_DIMS,
    MAX_INPUTS,
    MAX_OUTPUTS,
    MAX_PARAMETERS,
    NUMBERS,
    Data,
    Encoded,
    InferAnswer,
    InferRequest,
    Parameter,
    RequestedOutput,
    Tensor,
    check_most,
    check_no_classification,
    elements_of,
    refused,
)
from vlserve_worker.v2.raw_data import read_raw, write_raw

BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
"""Parameters of a tensor, of a requested output, of a request."""

JSON, WITH_BINARY = "application/json", "application/octet-stream"

Members = Mapping[str, Any]


def read_request(body: bytes | bytearray, json_length: str = "") -> InferRequest:
    """Read a request.

    Args:
        json_length: Inference-Header-Content-Length; empty where all of the body is JSON.

    Raises:
        BodyRefused: it is not what V2 asks for, or over a limit.
    """
    head, binary = _split(memoryview(body), json_length)
    content = _object(strict_json(bytes(head)), "the request")
    parameters = _parameters(content, "the request")
    inputs = _list(content, "inputs")
    outputs = _list(content, "outputs")
    check_most("inputs", len(inputs), MAX_INPUTS)
    check_most("requested outputs", len(outputs), MAX_OUTPUTS)
    name = content.get("id", "")
    if not isinstance(name, str):
        raise refused("'id' must be a string")
    return InferRequest(
        inputs=tuple(_inputs(inputs, binary)),
        id=name,
        parameters={key: value for key, value in parameters.items() if key != BINARY_OUTPUT},
        outputs=tuple(_requested(output) for output in outputs),
        binary_output=_switch(parameters, BINARY_OUTPUT) or False,
    )


def write_answer(answer: InferAnswer, request: InferRequest) -> Encoded:
    """Write an answer in the form that the request asks for, output by output."""
    choices = {output.name: output.binary for output in request.outputs}
    outputs, binary = [], []
    for tensor in answer.outputs:
        choice = choices.get(tensor.name)
        about: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if request.binary_output if choice is None else choice:
            binary.append(write_raw(tensor))
            about["parameters"] = {BINARY_SIZE: len(binary[-1])}
        else:
            about["data"] = _json_data(tensor)
        outputs.append(about)
    model = {"model_name": answer.model_name, "model_version": answer.model_version}
    head = json_bytes({**model, **({"id": answer.id} if answer.id else {}), "outputs": outputs})
    if not binary:
        return Encoded(head, JSON)
    return Encoded(b"".join((head, *binary)), WITH_BINARY, len(head))


def write_error(message: str) -> Encoded:
    """Write an error."""
    return Encoded(json_bytes({"error": message}), JSON)


def json_bytes(content: Members) -> bytes:
    """Write JSON without NaN. ValueError."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes JSON's own escape


def _json_data(tensor: Tensor) -> list[Any]:
    if tensor.datatype == BYTES:
        return [element.decode("utf-8", "backslashreplace") for element in tensor.data]
    numbers: list[Any] = np.asarray(tensor.data).tolist()
    return numbers


def _split(body: memoryview, json_length: str) -> tuple[memoryview, memoryview]:
    if not json_length:
        return body, body[:0]
    if not (json_length.isascii() and json_length.isdecimal() and len(json_length) <= 12):
        raise refused("Inference-Header-Content-Length must be the number of the JSON's bytes")
    length = int(json_length)
    if not 0 < length <= len(body):
        raise refused(
            f"Inference-Header-Content-Length is {length}: the body has {len(body)} bytes, "
            "which must begin with JSON"
        )
    return body[:length], body[length:]


def strict_json(raw: bytes) -> Any:
    """Return JSON without NaN, and without a name that is twice in one object. It is counted before
    it is parsed.

    Raises:
        BodyRefused: it is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError("a name is twice in one object")
        return members

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    if has_too_many_values(raw):
        raise refused(f"the JSON has more than {MAX_JSON_MARKS} values", TOO_COMPLEX)
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except RecursionError as error:
        raise refused("the JSON has too many levels", TOO_COMPLEX) from error
    except ValueError as error:
        raise refused(f"the body is not JSON: {error}") from error


def _object(value: Any, what: str) -> Members:
    if not isinstance(value, dict):
        raise refused(f"{what} must be a JSON object")
    return value


def _list(members: Members, name: str) -> Sequence[Any]:
    value = members.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise refused(f"{name!r} must be a list")
    return value


def _text(members: Members, name: str, what: str) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise refused(f"{what} has no {name!r}")
    return value


def _parameters(members: Members, what: str) -> dict[str, Parameter]:
    value = members.get("parameters")
    if value is None:
        return {}
    parameters = dict(_object(value, f"'parameters' of {what}"))
    check_most("parameters", len(parameters), MAX_PARAMETERS)
    for name, parameter in parameters.items():
        if not isinstance(parameter, str | int | float | bool):
            raise refused(f"the parameter {quoted(name)} must be a string, a number or a switch")
    return parameters


def _switch(parameters: Mapping[str, Parameter], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise refused(f"the parameter {name!r} must be true or false")
    return value


def _requested(content: Any) -> RequestedOutput:
    members = _object(content, "a requested output")
    name = _text(members, "name", "a requested output")
    parameters = _parameters(members, quoted(name))
    check_no_classification(parameters)
    return RequestedOutput(name, _switch(parameters, BINARY))


def _inputs(inputs: Sequence[Any], binary: memoryview) -> Iterable[Tensor]:
    at = 0
    for content in inputs:
        members = _object(content, "an input")
        name = _text(members, "name", "an input")
        datatype = _text(members, "datatype", f"the input {quoted(name)}")
        shape = _shape(members, name)
        size = _parameters(members, quoted(name)).get(BINARY_SIZE)
        if size is None:
            yield _of_json(members, name, datatype, shape)
            continue
        if "data" in members:
            raise refused(f"{quoted(name)} has data in JSON and as bytes behind it")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise refused(f"{BINARY_SIZE!r} of {quoted(name)} must be a number of bytes")
        if size > len(binary) - at:
            raise refused(
                f"{quoted(name)} is to have {size} bytes behind the JSON, where "
                f"{len(binary) - at} are left"
            )
        yield read_raw(name, datatype, shape, binary[at : at + size])
        at += size
    if at < len(binary):
        raise refused(f"{len(binary) - at} bytes behind the JSON belong to no input")


def _shape(members: Members, name: str) -> tuple[int, ...]:
    shape = members.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(dim, int) and not isinstance(dim, bool) for dim in shape
    ):
        raise refused(f"{quoted(name)} has no 'shape', a list of whole numbers")
    return tuple(shape)


def _of_json(members: Members, name: str, datatype: str, shape: tuple[int, ...]) -> Tensor:
    count = elements_of(name, datatype, shape)
    if not isinstance(members.get("data"), list):
        raise refused(f"{quoted(name)} has no 'data', a list of its elements")
    values = _flat(members["data"], name)
    if len(values) != count:
        raise refused(f"{quoted(name)} has {len(values)} elements, its shape says {count}")
    return Tensor(name, datatype, shape, _elements(values, name, datatype))


def _flat(data: list[Any], name: str) -> list[Any]:
    """Return the elements of lists in lists, which V2 allows for; each level is walked once."""
    for _ in range(MAX_DIMS):
        if not any(isinstance(value, list) for value in data):
            return data
        if not all(isinstance(value, list) for value in data):
            break
        data = [element for row in data for element in row]
    raise refused(f"'data' of {quoted(name)} is no list of elements, row by row")


def _elements(values: list[Any], name: str, datatype: str) -> Data:
    if not all(type(value) in _TYPES[datatype] for value in values):
        raise refused(f"'data' of {quoted(name)} must hold values of {datatype} alone")
    if datatype == BYTES:
        return [value.encode("utf-8", "surrogatepass") for value in values]
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(values, dtype=NUMBERS[datatype])
    except OverflowError as error:
        raise _beyond(name, datatype) from error
    if not np.isfinite(numbers).all():
        raise _beyond(name, datatype)
    return numbers


def _beyond(name: str, datatype: str) -> BodyRefused:
    return refused(f"'data' of {quoted(name)} has a number beyond {datatype}")


_TYPES: Mapping[str, tuple[type, ...]] = {
    BYTES: (str,),
    **{
        datatype: {"b": (bool,), "f": (int, float)}.get(kind.kind, (int,))
        for datatype, kind in NUMBERS.items()
    },
}
"""Datatype -> the types of its elements as JSON is read."""
