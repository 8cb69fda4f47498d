"""V2 over gRPC: the message ModelInferRequest read, ModelInferResponse written.

The gateway (serving_config/gateway/grpc_request.lua) hands a call's message over as the body of a
request of type ``application/x-protobuf``. What clients send stands in ``contents`` or, of most, in
``raw_input_contents``; answers are raw, which every client reads.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve_worker.bodies import quoted
from vlserve_worker.v2 import rest
from vlserve_worker.v2.messages import (
    BOOL,
    BYTES,
    FP32,
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
from vlserve_worker.v2.protobuf_wire import (
    FIXED32,
    FIXED64,
    MAX_NUMBERS,
    VARINT,
    Field,
    WireReader,
    packed_varints,
    signed,
    write_octets,
    write_text,
    write_varint,
)
from vlserve_worker.v2.raw_data import read_raw, write_raw

PROTOBUF = "application/x-protobuf"

Message = memoryview

_CONTENTS_OF = {
    BOOL: 1,
    **dict.fromkeys(("INT8", "INT16", "INT32"), 2),
    "INT64": 3,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), 4),
    "UINT64": 5,
    FP32: 6,
    "FP64": 7,
    BYTES: 8,
}
"""Datatype -> the field of InferTensorContents that holds it; FP16 has none."""


def read_request(body: bytes | bytearray, json_length: str = "") -> InferRequest:
    """Read a ModelInferRequest; which model it names is left to the gateway.

    Args:
        json_length: of REST alone.

    Raises:
        BodyRefused: it is not what V2 asks for, or over a limit.
    """
    wire = WireReader()
    name = ""
    parameters: dict[str, Parameter] = {}
    inputs, outputs, raw = [], [], []
    for field in wire.fields(memoryview(body)):
        match field.number:
            case 3:
                name = field.text()
            case 4:
                _add_parameter(wire, field, parameters)
            case 5:
                inputs.append(_Input.read(wire, field.octets()))
            case 6:
                outputs.append(_requested(wire, field.octets()))
            case 7:
                raw.append(field.octets())
    check_most("inputs", len(inputs), MAX_INPUTS)
    check_most("requested outputs", len(outputs), MAX_OUTPUTS)
    if raw and len(raw) != len(inputs):
        raise refused(f"the request has {len(inputs)} inputs, and {len(raw)} raw_input_contents")
    tensors = (
        [entry.of_raw(octets) for entry, octets in zip(inputs, raw, strict=True)]
        if raw
        else [entry.of_contents(wire) for entry in inputs]
    )
    return InferRequest(tuple(tensors), name, parameters, tuple(outputs))


def write_answer(answer: InferAnswer, request: InferRequest) -> Encoded:
    """Write a ModelInferResponse; ``request`` has no say in its form."""
    parts = [
        write_text(1, answer.model_name),
        write_text(2, answer.model_version),
        write_text(3, answer.id),
        *(write_octets(5, _about(tensor)) for tensor in answer.outputs),
        *(write_octets(6, write_raw(tensor)) for tensor in answer.outputs),
    ]
    return Encoded(b"".join(parts), PROTOBUF)


def write_error(message: str) -> Encoded:
    """Write an error: as in REST, for the gateway makes gRPC's words of it."""
    return rest.write_error(message)


def _about(tensor: Tensor) -> bytes:
    shape = b"".join(map(write_varint, tensor.shape))
    head = write_text(1, tensor.name) + write_text(2, tensor.datatype)
    return head + (write_octets(3, shape) if shape else b"")


class _Input:
    """An InferInputTensor, before it is known where its data stand."""

    def __init__(self) -> None:
        self.name, self.datatype = "", ""
        self.shape: list[int] = []
        self.contents: list[Message] = []

    @classmethod
    def read(cls, wire: WireReader, message: Message) -> "_Input":
        entry, parameters = cls(), dict[str, Parameter]()
        for field in wire.fields(message):
            match field.number:
                case 1:
                    entry.name = field.text()
                case 2:
                    entry.datatype = field.text()
                case 3:
                    entry.shape += _dims(field)
                    check_most("dimensions of an input", len(entry.shape), MAX_DIMS)
                case 4:
                    _add_parameter(wire, field, parameters)
                case 5:
                    entry.contents.append(field.octets())  # several are one message
        if not entry.name:
            raise refused("an input has no name")
        _check_no_shared_memory(entry.name, parameters)
        return entry

    def of_raw(self, octets: Message) -> Tensor:
        if any(self.contents):
            raise refused(f"{quoted(self.name)} has contents beside raw_input_contents")
        return read_raw(self.name, self.datatype, self.shape, octets)

    def of_contents(self, wire: WireReader) -> Tensor:
        count = elements_of(self.name, self.datatype, self.shape)
        number = _CONTENTS_OF.get(self.datatype)
        if number is None:
            raise refused(f"{quoted(self.name)} of {self.datatype} has no contents: send it raw")
        fields = [field for message in self.contents for field in wire.fields(message)]
        if any(field.number != number for field in fields):
            raise refused(f"{quoted(self.name)} has other contents than {self.datatype}")
        data: Data = (
            [bytes(field.octets()) for field in fields]
            if self.datatype == BYTES
            else _numbers(self.name, self.datatype, fields)
        )
        if len(data) != count:
            raise refused(
                f"{quoted(self.name)} has {len(data)} elements in its contents, "
                f"its shape says {count}"
            )
        return Tensor(self.name, self.datatype, tuple(self.shape), data)


def _numbers(name: str, datatype: str, fields: Sequence[Field]) -> Data:
    kind = NUMBERS[datatype]
    if kind.kind == "f":
        single = FIXED32 if datatype == FP32 else FIXED64
        octets = b"".join(
            field.octets() if field.wire_type != single else field.octets(single)
            for field in fields
        )
        if len(octets) % kind.itemsize:
            raise refused(f"the contents of {quoted(name)} are cut short")
        floats: Data = np.frombuffer(octets, dtype=kind)
        return floats
    parts, count = [np.zeros(0, dtype=np.uint64)], 0
    for field in fields:
        parts.append(_varints(field))
        count += parts[-1].size
        check_most(f"numbers in the contents of {quoted(name)}", count, MAX_NUMBERS)
    values = np.concatenate(parts)
    if datatype == BOOL:
        switches: Data = values != 0
        return switches
    wide = values.view(np.int64) if kind.kind == "i" else values
    narrow: NDArray[Any] = wide.astype(kind)
    if not np.array_equal(narrow, wide):
        raise refused(f"the contents of {quoted(name)} have a number beyond {datatype}")
    return narrow


def _varints(field: Field) -> NDArray[np.uint64]:
    if field.wire_type == VARINT:
        return np.array([field.integer()], dtype=np.uint64)
    return packed_varints(field.octets())


def _dims(field: Field) -> list[int]:
    """Return the sizes of a shape, which stand in one field or in one each."""
    if field.wire_type == VARINT:
        return [signed(field.integer())]
    sizes: list[int] = packed_varints(field.octets()).view(np.int64).tolist()
    return sizes


def _requested(wire: WireReader, message: Message) -> RequestedOutput:
    name, parameters = "", dict[str, Parameter]()
    for field in wire.fields(message):
        if field.number == 1:
            name = field.text()
        elif field.number == 2:
            _add_parameter(wire, field, parameters)
    if not name:
        raise refused("a requested output has no name")
    check_no_classification(parameters)
    _check_no_shared_memory(name, parameters)
    return RequestedOutput(name)


def _check_no_shared_memory(name: str, parameters: dict[str, Parameter]) -> None:
    if "shared_memory_region" in parameters:
        raise refused(f"{quoted(name)} is in shared memory, which is not read: send the bytes")


def _add_parameter(wire: WireReader, entry: Field, parameters: dict[str, Parameter]) -> None:
    """Add an entry of a map of parameters; of two with one name the last one counts."""
    name: str = ""
    value: Parameter | None = None
    for field in wire.fields(entry.octets()):
        if field.number == 1:
            name = field.text()
        elif field.number == 2:
            for choice in wire.fields(field.octets()):
                value = _parameter(choice, value)
    if value is None:
        raise refused(f"the parameter {quoted(name)} has no value of a known type")
    parameters[name] = value
    check_most("parameters", len(parameters), MAX_PARAMETERS)


def _parameter(choice: Field, earlier: Parameter | None) -> Parameter | None:
    match choice.number:
        case 1:
            return choice.integer() != 0
        case 2:
            return signed(choice.integer())
        case 3:
            return choice.text()
        case 4:
            (number,) = struct.unpack("<d", choice.octets(FIXED64))
            return float(number)
        case 5:
            return choice.integer()
    return earlier
