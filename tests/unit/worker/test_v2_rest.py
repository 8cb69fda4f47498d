"""V2 over HTTP: JSON and binary data, read and written."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlserve_worker.bodies import MAX_JSON_MARKS, BodyRefused
from vlserve_worker.v2 import rest
from vlserve_worker.v2.messages import (
    BYTES,
    MAX_DIMS,
    NUMBERS,
    TOO_MANY_ITEMS,
    InferAnswer,
    InferRequest,
    RequestedOutput,
    Tensor,
)
from vlserve_worker.v2.raw_data import read_raw, write_raw

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@st.composite
def tensors(draw: st.DrawFn, texts: bool = False) -> Tensor:
    """``texts``: of BYTES, UTF-8 alone, as JSON can carry it."""
    datatype = draw(st.sampled_from([BYTES, *NUMBERS]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = int(np.prod(shape))
    name = draw(NAMES)
    if datatype == BYTES:
        of = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
        elements = of if texts else st.binary(max_size=8)
        return Tensor(name, BYTES, shape, draw(st.lists(elements, min_size=count, max_size=count)))
    kind = NUMBERS[datatype]
    if kind.kind == "b":
        numbers: st.SearchStrategy[Any] = st.booleans()
    elif kind.kind == "f":
        numbers = st.floats(width=8 * kind.itemsize, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    else:
        numbers = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    values = draw(st.lists(numbers, min_size=count, max_size=count))
    return Tensor(name, datatype, shape, np.array(values, dtype=kind))


def same(tensor: Tensor, other: Tensor) -> bool:
    about = (tensor.name, tensor.datatype, tensor.shape) == (
        other.name,
        other.datatype,
        other.shape,
    )
    return about and list(tensor.data) == list(other.data)


def body_of(tensor: Tensor, binary: bool) -> tuple[bytes, str]:
    """A request of one input, as clients write it."""
    entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype}
    entry["shape"] = list(tensor.shape)
    raw = write_raw(tensor) if binary else b""
    if binary:
        entry["parameters"] = {"binary_data_size": len(raw)}
    elif tensor.datatype == BYTES:
        entry["data"] = [element.decode("utf-8", "surrogatepass") for element in tensor.data]
    else:
        entry["data"] = np.asarray(tensor.data).reshape(tensor.shape).tolist()
        entry["data"] = entry["data"] if tensor.shape else [entry["data"]]
    head = json.dumps({"inputs": [entry]}).encode()
    return head + raw, str(len(head)) if binary else ""


@given(tensors())
def test_binary_inputs_are_read_as_written(tensor: Tensor) -> None:
    (result,) = rest.read_request(*body_of(tensor, binary=True)).inputs
    assert same(result, tensor)


@given(tensors(texts=True))
def test_json_inputs_are_read_as_written(tensor: Tensor) -> None:
    (result,) = rest.read_request(*body_of(tensor, binary=False)).inputs
    assert same(result, tensor)


@given(
    st.lists(tensors(texts=True), min_size=1, max_size=3, unique_by=lambda output: output.name),
    st.data(),
)
def test_each_output_comes_in_the_form_that_was_asked_for(
    outputs: list[Tensor], data: st.DataObject
) -> None:
    choices = tuple(
        RequestedOutput(output.name, data.draw(st.sampled_from([None, True, False])))
        for output in outputs
    )
    request = InferRequest((), outputs=choices, binary_output=data.draw(st.booleans()))
    encoded = rest.write_answer(InferAnswer("m", "7", "mine", tuple(outputs)), request)
    head = encoded.body[: encoded.json_bytes]
    answer, at = json.loads(head), len(head)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "7", "mine")
    for choice, tensor, about in zip(choices, outputs, answer["outputs"], strict=True):
        binary = request.binary_output if choice.binary is None else choice.binary
        assert binary == ("data" not in about)
        if binary:
            size = about["parameters"]["binary_data_size"]
            result = read_raw(
                about["name"], about["datatype"], about["shape"], encoded.body[at : at + size]
            )
            at += size
            assert same(result, tensor)
        elif tensor.datatype != BYTES:
            assert about["data"] == np.asarray(tensor.data).tolist()
    assert at == len(encoded.body)
    assert encoded.content_type == (rest.WITH_BINARY if encoded.json_bytes else rest.JSON)


def test_a_request_has_its_id_parameters_and_outputs() -> None:
    body = {
        "id": "mine",
        "parameters": {"top_k": 3, "binary_data_output": True},
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["a"], ["b"]]}],
        "outputs": [{"name": "tag", "parameters": {"binary_data": False}}, {"name": "score"}],
    }
    request = rest.read_request(json.dumps(body).encode())
    assert (request.id, request.parameters, request.binary_output) == ("mine", {"top_k": 3}, True)
    assert request.outputs == (RequestedOutput("tag", False), RequestedOutput("score"))
    assert request.inputs[0].data == [b"a", b"b"]


def text_input(**changes: Any) -> dict[str, Any]:
    about = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]} | changes
    return {"inputs": [{name: value for name, value in about.items() if value is not None}]}


BAD = {
    "no JSON": (b"{", "", "not JSON"),
    "a list": (b"[]", "", "must be a JSON object"),
    "NaN": (b'{"inputs": NaN}', "", "no JSON number"),
    "a name twice": (b'{"id": "a", "id": "b"}', "", "twice"),
    "levels": (b'{"inputs": ' + b"[" * 100_000, "", "too many levels"),
    "id": ({"id": 3}, "", "'id'"),
    "inputs": ({"inputs": {}}, "", "'inputs'"),
    "an input": ({"inputs": [3]}, "", "an input"),
    "no name": (text_input(name=None), "", "'name'"),
    "datatype": (text_input(datatype="STRING"), "", "'STRING'"),
    "no shape": (text_input(shape=None), "", "'shape'"),
    "a shape of words": (text_input(shape=["1"]), "", "'shape'"),
    "a negative size": (text_input(shape=[-1]), "", "negative"),
    "dimensions": (text_input(shape=[1] * (MAX_DIMS + 1)), "", "dimensions"),
    "more than its shape": (text_input(data=["a", "b"]), "", "2 elements"),
    "a huge shape": (text_input(datatype="INT8", shape=[1] + [10**9] * 7), "", "its shape says"),
    "a size of 4,000 digits": (text_input(shape=[10**4000] * 2), "", "beyond"),
    "BYTES of many elements": (text_input(shape=[1, 65]), "", "65 items"),
    "no data": (text_input(data=None), "", "'data'"),
    "ragged": (text_input(data=["a", ["b"]]), "", "row by row"),
    "numbers as BYTES": (text_input(data=[3]), "", "BYTES"),
    "switches as numbers": (text_input(datatype="INT32", data=[True]), "", "INT32"),
    "fractions as INT32": (text_input(datatype="INT32", data=[1.5]), "", "INT32"),
    "too large a number": (text_input(datatype="INT8", data=[300]), "", "beyond INT8"),
    "no finite number": (text_input(datatype="FP32", data=[1e40]), "", "beyond FP32"),
    "parameters": ({"parameters": {"a": []}, **text_input()}, "", "'a'"),
    "a switch": ({"parameters": {"binary_data_output": 1}, **text_input()}, "", "true or false"),
    "classification": (
        {**text_input(), "outputs": [{"name": "tag", "parameters": {"classification": 3}}]},
        "",
        "classification",
    ),
    "length in words": (text_input(), "ten", "Inference-Header-Content-Length"),
    "length 0": (text_input(), "0", "Inference-Header-Content-Length"),
    "length beyond the body": (text_input(), "9999", "Inference-Header-Content-Length"),
    "data twice": (text_input(parameters={"binary_data_size": 0}), "", "in JSON and as bytes"),
    "no such bytes": (
        text_input(parameters={"binary_data_size": 9}, data=None),
        "",
        "0 are left",
    ),
    "a size of words": (text_input(parameters={"binary_data_size": "9"}, data=None), "", "number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_v2_is_refused_in_words(case: str) -> None:
    body, length, says = BAD[case]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BodyRefused, match=says):
        rest.read_request(raw, length)


def test_json_of_too_many_values_is_not_parsed() -> None:
    with pytest.raises(BodyRefused, match="values") as error:
        rest.read_request(b'{"inputs": [' + b"," * MAX_JSON_MARKS)
    assert error.value.code == "body_too_complex"


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    body, length = body_of(Tensor("text", BYTES, (1,), [b"a"]), binary=True)
    with pytest.raises(BodyRefused, match="belong to no input"):
        rest.read_request(body + b"x", length)


RAW = {
    "cut in a length": (
        "BYTES",
        [1],
        b"\x01\x00\x00\x00a\x00",
        "ends inside of an element's length",
    ),
    "cut in an element": ("BYTES", [1], b"\x05\x00\x00\x00a", "ends inside of an element"),
    "too many": ("BYTES", [1], 2 * b"\x01\x00\x00\x00a", "more elements"),
    "too few": ("BYTES", [2], b"\x05\x00\x00\x00abcde", "1 elements, its shape says 2"),
    "far too few": ("BYTES", [64], b"\x01\x00\x00\x00a", "fewer elements"),
    "numbers": ("FP32", [2**31 - 1, 2**31 - 1], b"abcd", "its shape takes"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_bytes_that_do_not_fit_their_shape_are_refused(case: str) -> None:
    datatype, shape, raw, says = RAW[case]
    with pytest.raises(BodyRefused, match=says):
        read_raw("x", datatype, shape, raw)


def test_elements_beyond_the_most_items_are_not_read() -> None:
    with pytest.raises(BodyRefused, match="1000000 items") as error:
        read_raw("x", "BYTES", [10**6], b"\0" * 4 * 10**6)
    assert error.value.code == TOO_MANY_ITEMS


def test_a_huge_element_is_not_allocated() -> None:
    with pytest.raises(BodyRefused, match="ends inside of an element"):
        read_raw("x", "BYTES", [1], struct.pack("<I", 2**32 - 1) + b"a")
