"""Forms and JSON bodies become the same fields; everything else has its own error."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlserve.runtime.body import (
    MAX_FIELDS,
    MAX_JSON_MARKS,
    ImageField,
    RequestFields,
    TextField,
    WholeNumber,
    answer_text,
    parse_fields,
    read_body,
    read_request,
    write_body,
)
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import ItemError, Request


class Asked(RequestFields):
    image: ImageField
    text: TextField
    top_k: WholeNumber | None = None


def code(parameters: dict[str, Any]) -> ErrorCode:
    with pytest.raises(RequestError) as error:
        parse_fields(Asked, read_body(parameters))
    return error.value.code


def json_body(**fields: Any) -> dict[str, Any]:
    return {"body": bytearray(json.dumps(fields).encode())}


def test_a_form_and_a_json_body_say_the_same() -> None:
    form = {"image": bytearray(b"\xff\xd8"), "text": bytearray("猫".encode()), "top_k": b"3"}
    body = json_body(image=base64.b64encode(b"\xff\xd8").decode(), text="猫", top_k=3)
    expected = Asked(image=b"\xff\xd8", text="猫", top_k=3)
    assert parse_fields(Asked, read_body(form)) == expected
    assert parse_fields(Asked, read_body(body)) == expected


def test_a_query_parameter_gives_way_to_the_body() -> None:
    body = read_body({"top_k": b"9", "text": b"query", **json_body(text="body")})
    assert body == {"top_k": b"9", "text": "body"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[1]", b"3", b'"text"', b"null", b'{"a":1}x', b'{"text": NaN'),
        *(
            b'{"top_k": NaN}',
            b'{"a": -Infinity}',
            b'{"a": 1, "a": 1}',
            b'{"a": [{"b": 1, "b": 2}]}',
        ),
        *(b"\xff\xd8\xff", b"1" * 5000),
    ],
)
def test_unreadable_bodies(body: bytes) -> None:
    assert code({"body": bytearray(body)}) is ErrorCode.BODY_UNREADABLE


def test_no_body_at_all() -> None:
    assert code({}) is ErrorCode.BODY_UNREADABLE


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"image": "AA=="}, "text"),
        ({"text": "a"}, "image"),
        ({"image": "AA==", "text": "a", "colour": 1}, "colour"),
        ({"image": 3, "text": "a"}, "image"),
        ({"image": None, "text": "a"}, "image"),
        ({"image": ["AA=="], "text": "a"}, "image"),
        ({"image": "AA==", "text": 3}, "text"),
        ({"image": "AA==", "text": None}, "text"),
        ({"image": "AA==", "text": ["a"]}, "text"),
        *(({"image": "AA==", "text": "a", "top_k": k}, "top_k") for k in ("3", 2.0, True, [1])),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestError, match=name) as error:
        parse_fields(Asked, read_body(json_body(**fields)))
    assert error.value.code is ErrorCode.FIELD_INVALID


@pytest.mark.parametrize("top_k", [b"", b"-1", b"1.5", b"three", b"1" * 10, "٣".encode(), b" 3"])
def test_a_form_field_that_is_no_number(top_k: bytes) -> None:
    assert code({"image": b"x", "text": b"a", "top_k": top_k}) is ErrorCode.FIELD_INVALID


@pytest.mark.parametrize(
    "image",
    ["!!", "AA", "AA=A", "AA==AA==", "A A=", "data:image/png,AA==", "data:,", "é", "\ud800"],
)
def test_base64_is_strict(image: str) -> None:
    assert code(json_body(image=image, text="a")) is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    "image",
    [
        *("/+8=", "_-8=", " /+8=\n", "/+\r\n8=", "data:image/png;base64,/+8="),
        "data:image/png;name=a;base64,\n/+8=",
    ],
)
def test_base64_as_clients_write_it(image: str) -> None:
    body = json_body(image=image, text="a")
    assert parse_fields(Asked, read_body(body)).image == b"\xff\xef"


def test_base64_in_a_form_is_told_from_a_file() -> None:
    raw = bytes(range(200, 256))
    text = base64.encodebytes(raw)
    for value in (raw, text, b"data:image/jpeg;base64," + text, base64.urlsafe_b64encode(raw)):
        assert parse_fields(Asked, {"image": bytearray(value), "text": b"a"}).image == raw
    short = b"cover.jpg"
    assert parse_fields(Asked, {"image": short, "text": b"a"}).image == short


MANY = b'{"a": [' + b"1," * MAX_JSON_MARKS + b"1]}"
DEEP = b'{"text": ' + b"[" * 32 + b'"]]]"' + b"]" * 32 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        MANY,
        MANY.decode().encode("utf-16"),
        DEEP,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        json.dumps({str(number): 1 for number in range(MAX_FIELDS + 1)}).encode(),
    ],
    ids=["values", "values-in-utf-16", "levels", "objects", "names"],
)
def test_a_body_of_too_many_values_is_not_parsed(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(body) > 1000:
        monkeypatch.setattr(json, "loads", None)
    assert code({"body": bytearray(body)}) is ErrorCode.BODY_TOO_COMPLEX


def test_brackets_inside_of_texts_are_no_levels() -> None:
    text = "[{" * 100 + '\\"' + "[" * 100
    assert read_body(json_body(text=text, other='"' + text)) == {"text": text, "other": '"' + text}


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "AA==", "text": "a", "x" * 1000: 1},
        {"x" * 1000: 1},
        {"image": "x" * 1000, "text": 1},
    ],
)
def test_a_refusal_quotes_at_most_50_characters(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        parse_fields(Asked, read_body(json_body(**fields)))
    assert "x" * 51 not in error.value.message


def test_what_is_no_json_is_quoted_where_it_fails() -> None:
    with pytest.raises(RequestError) as error:
        read_body({"body": b'{"a": ' + b"x" * 1000})
    assert error.value.message.count("x") == 50  # one of them in "Expecting"


@pytest.mark.parametrize("text", ["a\0", "\ud800"])
def test_text_that_json_lets_through(text: str) -> None:
    assert code(json_body(image="AA==", text=text)) is ErrorCode.TEXT_UNREADABLE


def test_a_form_text_that_is_not_utf8() -> None:
    assert code({"image": b"x", "text": b"\xff"}) is ErrorCode.TEXT_UNREADABLE


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["image", "text", "top_k", "body"]) | st.text(st.characters(codec=None))


@given(st.dictionaries(NAMES, JSON_VALUES | st.binary(), max_size=5))
def test_any_fields_are_parsed_or_refused(fields: dict[str, Any]) -> None:
    try:
        parse_fields(Asked, fields)
    except RequestError as error:
        write_body(manifest(), "id", ItemError(error.code, error.message))


@given(st.dictionaries(NAMES, st.binary(), max_size=4))
def test_any_parameters_are_read_or_refused(parameters: dict[str, bytes]) -> None:
    assert isinstance(read_request(parameters, "id"), Request | ItemError)


def manifest() -> Manifest:
    tensor = {"name": "x", "dtype": "float32", "dims": ["batch"]}
    graph = {"file": "g", "format": "echo", "inputs": [tensor], "outputs": [tensor]}
    files = ["g", "handlers/tag.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json"]
    return Manifest.model_validate(
        {"model": "m", "version": 2, "task": "tag", "family": "f", "graphs": {"model": graph}}
        | {"files": dict.fromkeys(files, "0" * 64)}
    )


def test_answers_say_who_answered() -> None:
    text = answer_text({"tags": [{"tag": "猫", "score": 0.5}]})
    body = write_body(manifest(), "r-1", text)
    assert "猫".encode() in body
    assert json.loads(body) == {
        "model": "m",
        "version": 2,
        "request_id": "r-1",
        "tags": [{"tag": "猫", "score": 0.5}],
    }


def test_an_empty_answer_is_still_json() -> None:
    body = write_body(manifest(), "r-1", answer_text({}))
    assert json.loads(body) == {"model": "m", "version": 2, "request_id": "r-1"}


def test_errors_say_what_and_which() -> None:
    body = write_body(manifest(), "r-1", ItemError(ErrorCode.FIELD_INVALID, "no \ud800 here"))
    assert json.loads(body) == {
        "error": {"code": "field_invalid", "message": "no \ud800 here"},
        "request_id": "r-1",
    }
