"""From what an engine hands over to a task's fields, and from answers to what it sends back.

An engine gives each request as named values: the parts of a multipart form as bytes, or the whole
of a JSON body as bytes under ``body``. Tasks declare their fields as a pydantic model of the types
below, which take both.

JSON is counted before it is parsed: a body of millions of values would take seconds and gigabytes.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from vlserve.runtime.errors import ErrorCode, RequestError, quoted, wrong_fields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.text import read_text
from vlserve.runtime.types import Answer, ItemError, Request

BODY = "body"
MAX_MESSAGE_CHARS = 500
MAX_FIELDS = 64
"""Most names in a JSON body."""
MAX_JSON_MARKS = 1_000_000
"""Most commas, colons, brackets and braces of a JSON body, those inside of strings too: a list of
100,000 candidates has 100,000, and the longest text that a model takes 65,536."""
MAX_JSON_DEPTH = 32
"""Most objects and lists inside each other."""
_DECIMAL = re.compile(rb"-?\d{1,20}(\.\d{1,20})?")

Parsed = TypeVar("Parsed", bound=BaseModel)


class RequestFields(BaseModel):
    """Base of every task's request schema: unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _image_bytes(value: Any, info: ValidationInfo) -> bytes:
    return _file_bytes(value, info, "an image file", ErrorCode.IMAGE_UNREADABLE)


def _npy_bytes(value: Any, info: ValidationInfo) -> bytes:
    return _file_bytes(value, info, "a .npy file", ErrorCode.FEATURES_UNREADABLE)


def _file_bytes(value: Any, info: ValidationInfo, kind: str, unreadable: ErrorCode) -> bytes:
    """Return a file's bytes out of a form, or as base64 out of JSON or a form."""
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        if not _IS_BASE64.match(raw):
            return raw
        value = raw.decode("ascii", "replace")
    if not isinstance(value, str):
        raise ValueError(f"must be {kind}, or base64 of one in JSON")
    try:
        return bytes_of_base64(value)
    except ValueError as error:
        raise RequestError(unreadable, f"{info.field_name} is not base64: {error}") from error


_IS_BASE64 = re.compile(rb"\s*(data:|[A-Za-z0-9+/_-]{16,64}(?:[A-Za-z0-9+/_=\r\n-]|$))")
"""How base64 begins, and no file that a model reads: those have bytes beyond ASCII, or a blank, in
their first sixteen."""


def bytes_of_base64(text: str) -> bytes:
    """Return bytes of base64, plain or URL-safe, whole or in lines, or as a data URI.
    ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass  # the rare forms are looked for only where the usual one fails
    head, comma, _ = text[:200].partition(",")
    if head.lstrip().startswith("data:") and comma:
        if not head.rstrip().endswith(";base64"):
            raise ValueError("the data URI does not say ;base64")
        text = text[len(head) + 1 :]
    text = text.strip().translate(_BASE64_OF_OTHERS)
    if " " in text:
        raise ValueError("it holds spaces: percent-encode + as %2B in a form")
    return binascii.a2b_base64(text, strict_mode=True)


_BASE64_OF_OTHERS = str.maketrans("-_", "+/", "\r\n\t")
"""The URL-safe alphabet -> the plain one; line breaks out."""


def _boxes(value: Any, info: ValidationInfo) -> Any:
    """Return bytes of a .npy file, or a list out of JSON, which a form may hold as text."""
    if isinstance(value, list):
        return value
    if isinstance(value, bytes | bytearray | memoryview) and bytes(value[:1]) == b"[":
        try:
            return _strict_json(bytes(value))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is neither a .npy file nor a JSON list: {error}") from error
    return _npy_bytes(value, info)


def _text(value: Any, info: ValidationInfo) -> str:
    return read_text(value, info.field_name or "text")


def _whole_number(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        if not value.isdigit() or len(value) > 9:
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _decimal(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        if not _DECIMAL.fullmatch(value):
            raise ValueError("must be a number")
        return float(value)
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        if bytes(value) not in (b"true", b"false"):
            raise ValueError("must be true or false")
        return bytes(value) == b"true"
    return value


ImageField = Annotated[bytes, BeforeValidator(_image_bytes)]
"""An image file's bytes."""

FeaturesField = Annotated[bytes, BeforeValidator(_npy_bytes)]
"""Bytes of a .npy file: (regions, dim) of float16, float32 or float64."""

BoxesField = Annotated[bytes | list[Any], BeforeValidator(_boxes)]
"""Of each region x1, y1, x2, y2, fractions of width and height: a .npy file's bytes, or a list."""

Switch = Annotated[bool, Field(strict=True), BeforeValidator(_switch)]
"""true or false, in a form too."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_decimal)]
"""A number; digits with a point in a form."""

TextField = Annotated[str, BeforeValidator(_text)]
"""Text, UTF-8 without NUL."""

WholeNumber = Annotated[int, Field(strict=True), BeforeValidator(_whole_number)]
"""A whole number of 0 or more; digits in a form."""


def read_request(parameters: Mapping[str, Any], request_id: str) -> Request | ItemError:
    """Make an engine's named values a Request, or say why there is none."""
    try:
        return Request(read_body(parameters), request_id)
    except RequestError as error:
        return ItemError(ErrorCode(error.code), error.message)


def answer_text(answer: Answer) -> str:
    """Return an answer as JSON; raises for what JSON cannot carry."""
    return json.dumps(answer, ensure_ascii=False, allow_nan=False)


def write_body(manifest: Manifest, request_id: str, answer: str | ItemError) -> bytes:
    """Return the JSON body that a client gets; ``answer`` as `answer_text` wrote it."""
    if isinstance(answer, ItemError):
        error = {"code": answer.code, "message": answer.message}
        body = json.dumps({"error": error, "request_id": request_id}, ensure_ascii=False)
    else:
        about = {"model": manifest.model, "version": manifest.version, "request_id": request_id}
        comma = ", " if answer != "{}" else ""
        body = json.dumps(about, ensure_ascii=False)[:-1] + comma + answer[1:]
    # a message may quote a lone surrogate of the request, which UTF-8 cannot carry
    return body.encode("utf-8", "backslashreplace")


def read_body(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw fields of an engine's named values. RequestError (BODY_UNREADABLE) when the
    body is neither a form nor a JSON object.

    Values beside the body are those that an engine takes from the query, where it does; the body's
    own fields win.
    """
    fields = dict(parameters)
    if not fields:
        raise RequestError(ErrorCode.BODY_UNREADABLE, "the request has no body")
    body = fields.pop(BODY, None)
    if body is None:
        return fields
    if isinstance(body, bytes | bytearray) and not body.strip():
        raise RequestError(ErrorCode.BODY_UNREADABLE, "the request has no body")
    try:
        content = body if isinstance(body, dict) else _strict_json(bytes(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(
            ErrorCode.BODY_UNREADABLE, f"the body is not JSON: {_why_no_json(error)}"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(
            ErrorCode.BODY_UNREADABLE,
            f"the JSON body must be an object, not {type(content).__name__}",
        )
    if len(content) > MAX_FIELDS:
        raise RequestError(
            ErrorCode.BODY_TOO_COMPLEX,
            f"the JSON body has {len(content)} fields, the limit is {MAX_FIELDS}",
        )
    return {**fields, **content}


def _strict_json(raw: bytes) -> Any:
    """Return JSON without NaN, which it does not have, and without a name that is twice in one
    object, where readers differ in which one counts."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError("a name is twice in one object")
        return members

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    _check_marks(text)
    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _check_marks(text: str) -> None:
    """Raise RequestError (BODY_TOO_COMPLEX) for more values or levels than a request has."""
    marks = {mark: text.count(mark) for mark in ",:[{"}
    if sum(marks.values()) > MAX_JSON_MARKS:
        raise RequestError(
            ErrorCode.BODY_TOO_COMPLEX, f"the JSON body has more than {MAX_JSON_MARKS} values"
        )
    if marks["["] + marks["{"] > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise RequestError(
            ErrorCode.BODY_TOO_COMPLEX,
            f"the JSON body has more than {MAX_JSON_DEPTH} levels of lists and objects",
        )


_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def _depth(text: str) -> int:
    """Return how many lists and objects are open at once, at the most."""
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
        depth += _STEPS[bracket]
        deepest = max(deepest, depth)
    return deepest


def _why_no_json(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return f"{error}: send UTF-8"
        case json.JSONDecodeError() if not error.doc.strip():
            return "it is empty"
        case json.JSONDecodeError():
            return (
                f"{error}, at {quoted(error.doc[error.pos : error.pos + 100])}"
                if error.doc
                else str(error)
            )
    return str(error) or type(error).__name__


def parse_fields(schema: type[Parsed], fields: Mapping[str, Any]) -> Parsed:
    """Parse raw fields by a task's schema; RequestError (FIELD_INVALID) names each wrong field."""
    try:
        return schema.model_validate(dict(fields))
    except ValidationError as error:
        wrong = wrong_fields(error, "fields")
        raise RequestError(ErrorCode.FIELD_INVALID, wrong[:MAX_MESSAGE_CHARS]) from error
