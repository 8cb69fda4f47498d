"""V2's messages over gRPC, against the messages of somebody else's client."""

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from vlserve_worker.adopted import ADOPTED
from vlserve_worker.bodies import SENT_TYPE, TOO_COMPLEX, UNREADABLE, BodyRefused
from vlserve_worker.request_filter import Refusal
from vlserve_worker.several_items import Exchange, ItemAnswer
from vlserve_worker.v2 import protobuf, protobuf_wire
from vlserve_worker.v2.batch import spread_batch
from vlserve_worker.v2.exchange import PROTOCOL, Served, open_exchange
from vlserve_worker.v2.messages import (
    BOOL,
    BYTES,
    MAX_DIMS,
    MAX_INPUTS,
    MAX_PARAMETERS,
    NUMBERS,
    InferAnswer,
    InferRequest,
    RequestedOutput,
    Tensor,
)

CONTENTS = {
    BOOL: "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
Input = pb.ModelInferRequest.InferInputTensor

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(bool)
whole = st.integers(-(2**63), 2**63 - 1)


def _image(data: bytes, name: str = "image") -> Input:
    contents = pb.InferTensorContents(bytes_contents=[data])
    return Input(name=name, datatype=BYTES, shape=[1], contents=contents)


def _read(request: Any) -> InferRequest:
    return protobuf.read_request(bytearray(request.SerializeToString()))


def _refusal(body: bytes) -> BodyRefused:
    with pytest.raises(BodyRefused) as error:
        protobuf.read_request(body)
    return error.value


def _length_prefixed(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@given(
    st.lists(st.tuples(names, st.lists(st.binary(max_size=300), max_size=3)), max_size=4),
    texts,
    st.booleans(),
)
def test_inputs_of_bytes_are_read_raw_and_from_contents(
    inputs: list[tuple[str, list[bytes]]], request_id: str, raw: bool
) -> None:
    request = pb.ModelInferRequest(model_name="m", model_version="1", id=request_id)
    for name, elements in inputs:
        tensor = request.inputs.add(name=name, datatype=BYTES, shape=[len(elements)])
        if raw:
            request.raw_input_contents.append(_length_prefixed(elements))
        else:
            tensor.contents.bytes_contents.extend(elements)
    result = _read(request)
    assert result.id == request_id
    assert [(item.name, item.shape, item.data) for item in result.inputs] == [
        (name, (len(elements),), elements) for name, elements in inputs
    ]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    """A datatype, and an array of any of its values."""
    datatype = draw(st.sampled_from(sorted(CONTENTS)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = int(np.prod(shape)) * NUMBERS[datatype].itemsize
    octets = draw(st.binary(min_size=size, max_size=size))
    if datatype == BOOL:
        octets = bytes(octet & 1 for octet in octets)
    return datatype, np.frombuffer(octets, dtype=NUMBERS[datatype]).reshape(shape)


@given(arrays(), st.booleans())
def test_numbers_are_read_raw_and_from_contents(
    typed_array: tuple[str, np.ndarray[Any, Any]], raw: bool
) -> None:
    datatype, array = typed_array
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if raw:
        request.raw_input_contents.append(array.tobytes())
    else:
        getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    (result,) = _read(request).inputs
    assert (result.datatype, result.shape) == (datatype, array.shape)
    np.testing.assert_array_equal(np.asarray(result.data), array.ravel())
    assert np.asarray(result.data).dtype == NUMBERS[datatype]


@given(st.dictionaries(texts, st.one_of(st.booleans(), whole, texts, st.floats(width=64))))
def test_parameters_and_requested_outputs_are_read(parameters: dict[str, Any]) -> None:
    request = pb.ModelInferRequest(model_name="m")
    for name, value in parameters.items():
        entry = request.parameters[name]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int):
            entry.int64_param = value
        elif isinstance(value, float):
            entry.double_param = value
        else:
            entry.string_param = value
    request.outputs.add(name="score")
    result = _read(request)
    assert result.parameters == pytest.approx(parameters, nan_ok=True)
    assert {name: type(value) for name, value in result.parameters.items()} == {
        name: type(value) for name, value in parameters.items()
    }
    assert result.outputs == (RequestedOutput("score"),)


@given(st.lists(st.tuples(names, st.lists(st.binary(max_size=200), max_size=3)), max_size=3), texts)
def test_an_answer_is_read_by_another_client(
    outputs: list[tuple[str, list[bytes]]], request_id: str
) -> None:
    scores = Tensor("score", "FP32", (2, 2), np.array([0.5, 1, -1, 3e38], dtype=np.float32))
    tensors = [Tensor(name, BYTES, (len(data),), data) for name, data in outputs]
    answer = InferAnswer("tagger", "3", request_id, (*tensors, scores))
    encoded = protobuf.write_answer(answer, InferRequest(()))
    assert encoded.content_type == "application/x-protobuf"
    response = pb.ModelInferResponse.FromString(encoded.body)
    assert (response.model_name, response.model_version, response.id) == ("tagger", "3", request_id)
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        *((name, BYTES, [len(data)]) for name, data in outputs),
        ("score", "FP32", [2, 2]),
    ]
    assert list(response.raw_output_contents) == [
        *(_length_prefixed(data) for _, data in outputs),
        scores.data.tobytes(),  # type: ignore[union-attr]
    ]
    assert response.SerializeToString(deterministic=True) == encoded.body


def test_a_field_of_a_later_version_is_passed_over() -> None:
    unknown = b"\x9a\x06\x03abc" + b"\xa5\x06abcd" + b"\xa1\x06abcdefgh" + b"\xa8\x06\x01"
    body = pb.ModelInferRequest(inputs=[_image(b"x")]).SerializeToString()
    assert protobuf.read_request(unknown + body + unknown).inputs[0].data == [b"x"]


def test_a_message_in_two_pieces_is_one() -> None:
    """As protobuf has it: of a message that stands twice, the fields of both count."""
    first, second = (pb.InferTensorContents(bytes_contents=[piece]) for piece in (b"a", b"b"))
    head = Input(name="image", datatype=BYTES, shape=[2]).SerializeToString()
    tensor = head + b"".join(
        protobuf_wire.write_octets(5, piece.SerializeToString()) for piece in (first, second)
    )
    (result,) = protobuf.read_request(protobuf_wire.write_octets(5, tensor)).inputs
    assert result.data == [b"a", b"b"]


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        protobuf.read_request(body)
    except BodyRefused as error:
        assert error.code in (UNREADABLE, TOO_COMPLEX)


@given(st.data())
def test_a_message_cut_short_or_changed_is_read_or_refused(data: st.DataObject) -> None:
    request = pb.ModelInferRequest(id="name", inputs=[_image(b"x" * 40), _image(b"y", "mask")])
    request.parameters["partial"].bool_param = True
    body = bytearray(request.SerializeToString())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)))
    try:
        protobuf.read_request(body[:end])
    except BodyRefused as error:
        assert error.code in (UNREADABLE, TOO_COMPLEX)


def _with(**fields: Any) -> bytes:
    return pb.ModelInferRequest(**fields).SerializeToString()


def _of(datatype: str, shape: list[int], **contents: list[Any]) -> bytes:
    tensor = Input(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )
    return _with(inputs=[tensor])


def _shared(name: str) -> bytes:
    request = pb.ModelInferRequest(inputs=[_image(b"")])
    place = request.inputs[0] if name == "input" else request.outputs.add(name="score")
    place.parameters["shared_memory_region"].string_param = "region"
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (_with(inputs=[_image(b"x")], raw_input_contents=[b"", b""]), "1 inputs, and 2 raw"),
        (_with(inputs=[_image(b"x")], raw_input_contents=[b""]), "contents beside"),
        (_of(BYTES, [2], bytes_contents=[b"x"]), "1 elements in its contents"),
        (_of("FP32", [1], int_contents=[1]), "other contents than FP32"),
        (_of("FP16", [1], fp32_contents=[1]), "send it raw"),
        (_of("INT8", [1], int_contents=[128]), "beyond INT8"),
        (_of("UINT16", [1], uint_contents=[65_536]), "beyond UINT16"),
        (_of("COMPLEX", [1]), "datatype 'COMPLEX'"),
        (_of(BYTES, [-1]), "negative size"),
        (_of(BYTES, [1] * (MAX_DIMS + 1)), f"limit is {MAX_DIMS}"),
        (_with(inputs=[Input(datatype=BYTES)]), "input has no name"),
        (_with(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor()]), "output has no name"),
        (_with(inputs=[_image(b"x")] * (MAX_INPUTS + 1)), f"limit is {MAX_INPUTS}"),
        (_shared("input"), "shared memory"),
        (_shared("output"), "shared memory"),
        (b"\x1a\x02\xff\xfe", "no UTF-8"),
        (b"\x18\x01", "another type"),
        (b"\x1b\x1c", "no protobuf message"),
        (b"\x00\x01", "no protobuf message"),
        (b"\x1a\xff\x01", "cut short"),
        (b"\x1a" + b"\xff" * 11, "cut short"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, words: str) -> None:
    error = _refusal(body)
    assert words in error.message


def test_fields_and_parameters_and_numbers_are_bounded() -> None:
    assert _refusal(b"\x18\x00" * 2).code == UNREADABLE
    many = b"\x98\x06\x00" * (protobuf_wire.MAX_FIELDS + 1)
    assert _refusal(many).code == TOO_COMPLEX
    numbers = b"\0" * (protobuf_wire.MAX_NUMBERS + 1)
    tensor = Input(name="x", datatype="INT32", shape=[len(numbers)]).SerializeToString()
    tensor += protobuf_wire.write_octets(5, protobuf_wire.write_octets(2, numbers))
    assert _refusal(protobuf_wire.write_octets(5, tensor)).code == TOO_COMPLEX
    request = pb.ModelInferRequest()
    for number in range(MAX_PARAMETERS + 1):
        request.parameters[str(number)].bool_param = True
    assert _refusal(request.SerializeToString()).code == TOO_COMPLEX


def _packed(number: int, content: bytes, times: int = 1) -> bytes:
    return protobuf_wire.write_octets(number, content) * times


@pytest.mark.parametrize(
    "fields",
    [
        _packed(5, _packed(2, b"\1" * 16_000_000)),
        _packed(5, _packed(2, b"\1" * 1_000_000, 16)),
        _packed(3, b"\1" * 1_000_000, 16),
    ],
    ids=["one field of numbers", "several fields of numbers", "sizes of a shape"],
)
def test_too_many_numbers_are_refused_before_all_are_unpacked(fields: bytes) -> None:
    """Unpacked, each of the 16 million takes eight bytes."""
    head = Input(name="x", datatype="INT32").SerializeToString()
    body = protobuf_wire.write_octets(5, head + fields)
    tracemalloc.start()
    try:
        assert _refusal(body).code == TOO_COMPLEX
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()


def _call(request: Any) -> dict[str, Any]:
    """A call as TorchServe's worker reads it."""
    headers = {PROTOCOL: b"v2", SENT_TYPE: protobuf.PROTOBUF.encode()}
    return {
        "headers": [{"name": name, "value": value} for name, value in headers.items()],
        "parameters": [{"name": "body", "value": bytearray(request.SerializeToString())}],
    }


def test_a_call_of_several_items_is_answered_in_protobuf() -> None:
    request = pb.ModelInferRequest(id="mine", inputs=[_image(b"x")])
    request.inputs[0].shape[0] = 2
    request.inputs[0].contents.bytes_contents.append(b"y")
    exchange = open_exchange(_call(request), Served("tagger", 3, "tag"), 10_000)
    assert exchange is not None
    assert [bytes(item["parameters"][0]["value"]) for item in exchange.items] == [b"x", b"y"]

    good = ItemAnswer(200, "", b'{"tags": [{"tag": "cat", "score": 0.5}]}')
    bad = ItemAnswer(422, "", b'{"error": {"code": "field_invalid", "message": "no"}}')
    success, failure = exchange.join([good, good]), exchange.join([good, bad])
    answer = pb.ModelInferResponse.FromString(success.encoded.body)
    assert (success.status, answer.id, answer.model_version) == (200, "mine", "3")
    assert list(answer.raw_output_contents) == [
        _length_prefixed([b"cat"] * 2),
        struct.pack("<2f", 0.5, 0.5),
    ]
    assert failure.status == 400
    assert json.loads(failure.encoded.body) == {"error": "item 1: field_invalid: no"}


def test_a_call_of_an_adopted_archive_is_refused() -> None:
    """Its handler would answer what no client reads as a message."""
    spread = spread_batch([_call(pb.ModelInferRequest())], Served("old", 1, ADOPTED), 10_000)
    (refusal,), (exchange,) = spread.items, spread.exchanges
    assert isinstance(refusal, Refusal) and isinstance(exchange, Exchange)
    whole = exchange.join([ItemAnswer(refusal.status, "", refusal.body("id"))])
    assert whole.status == 400
    assert "POST /predictions/" in json.loads(whole.encoded.body)["error"]
