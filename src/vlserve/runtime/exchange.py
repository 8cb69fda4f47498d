"""One raw exchange over HTTP: what an adopted archive gets and what it answers, of any type.

Between our own programs, as in probes, an exchange is a JSON request and a JSON answer. A client's
request, which the gateway hands over, becomes the first, and the second its reply.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import BaseModel, BeforeValidator, Field

from vlserve.runtime import headers
from vlserve.runtime.body import RequestFields, bytes_of_base64
from vlserve.runtime.types import Answer

RAW_HEADERS = "headers"
"""In an engine's named values of a client's request: all its headers, by their names."""


def _content(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes_of_base64(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise ValueError("must be base64")


class ExchangeFields(RequestFields):
    """A request to an adopted archive."""

    path: str = ""
    """As the client asked for it, with its query."""
    headers: dict[str, str] = Field(default_factory=dict)
    content: Annotated[bytes, BeforeValidator(_content)] = b""
    """The body; in JSON as base64."""


class ExchangeAnswer(BaseModel):
    """An answer of an adopted archive: its body is text where it is UTF-8, else base64."""

    status: int
    headers: dict[str, str]
    text: str | None = None
    base64: str | None = None


@dataclass(frozen=True)
class RawAnswer:
    """What a client gets: the handler's own status, headers and body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


def fields_of_client(raw_headers: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """Return the fields of a client's request, which came through the gateway.

    Args:
        raw_headers: name -> value as the engine has them; other values than text are passed over.
    """
    own = {name.lower(): value for name, value in raw_headers.items() if isinstance(value, str)}
    client_headers = unpacked_headers(own.get(headers.SENT_HEADERS, ""))
    for name, ours in (
        ("content-type", headers.SENT_CONTENT_TYPE),
        (headers.REQUEST_ID, headers.REQUEST_ID),
    ):
        if own.get(ours) and name not in client_headers:
            client_headers[name] = own[ours]
    return {"path": own.get(headers.SENT_PATH, ""), "headers": client_headers, "content": content}


def unpacked_headers(packed: str) -> dict[str, str]:
    """Return headers of the one that serving_config/gateway/adopted.lua packs them into:
    ``name:value`` with a blank between two, values percent-encoded. Of a name that is there twice
    the last value counts, as for TorchServe's handlers."""
    pairs = (entry.partition(":") for entry in packed.split(" ") if entry)
    return {name: unquote(value, "latin-1") for name, _, value in pairs}


def answer_of(raw: RawAnswer) -> Answer:
    """Return a raw answer as JSON has it."""
    about: Answer = {"status": raw.status, "headers": dict(raw.headers)}
    try:
        return about | {"text": raw.content.decode()}
    except UnicodeDecodeError:
        return about | {"base64": base64.b64encode(raw.content).decode("ascii")}


def raw_of(answer: Answer) -> RawAnswer:
    """Return the raw answer that `answer_of` made JSON of."""
    text = answer.get("text")
    content = base64.b64decode(answer["base64"]) if text is None else text.encode()
    return RawAnswer(answer["status"], answer["headers"], content)


def json_answer(status: int, content: Mapping[str, Any]) -> RawAnswer:
    """Return an answer in JSON, indented as TorchServe's own."""
    body = json.dumps(content, indent=2).encode() + b"\n"
    return RawAnswer(status, {"content-type": "application/json"}, body)


def failure(status: int, message: str, code: str) -> RawAnswer:
    """Return an error with TorchServe's three names beside ours."""
    return json_answer(
        status,
        {
            "code": status,
            "type": "InternalServerException",
            "message": message,
            "error": {"code": code, "message": message},
        },
    )
