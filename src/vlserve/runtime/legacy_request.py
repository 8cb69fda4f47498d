"""A client's request as TorchServe hands it to a handler: named values, and headers.

Tried on TorchServe 0.12.0; docs/moving-from-torchserve.md has the table.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from vlserve.runtime.exchange import ExchangeFields

BODY = "body"
MAX_PARTS = 1_000
"""Of a form; what comes after them is passed over."""
MAX_PART_HEADER_BYTES = 8192
_TAIL = re.compile(r"/predictions/[^/?]+/[^/?]+/(?P<tail>[^?]*)")
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_IS_HEX = np.array([byte in _HEX_DIGITS for byte in range(256)])
_HEX = np.array([int(chr(byte), 16) if byte in _HEX_DIGITS else 0 for byte in range(256)], np.uint8)
_EXPLAINED = re.compile(r"/explanations/|/v1/models/[^/?]+:explain(\?|$)")


@dataclass(frozen=True)
class LegacyRequest:
    """``data``: part name -> value, ``body`` for a whole body. ``properties``: the headers, and
    under each part's name its content type."""

    data: dict[str, Any]
    properties: dict[str, Any]
    request_id: str = ""


class AnyCase(dict[str, Any]):
    """Headers that are found in upper or lower case."""

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a header; ``default`` where it is not there."""
        if key in self:
            return self[key]
        header = str(key).lower()
        return next((value for name, value in self.items() if name.lower() == header), default)


@dataclass(frozen=True)
class _Part:
    name: str
    content_type: str
    value: bytes


def legacy_request(fields: ExchangeFields, decodes: bool, request_id: str) -> LegacyRequest:
    """Return what a handler gets of a request. ``decodes``: whether JSON and text are parsed."""
    headers = AnyCase(fields.headers)
    data: dict[str, Any] = {}
    properties = AnyCase()
    # Of a name that is there twice the last one counts.
    for part in _parts(fields.content, str(headers.get("content-type", ""))):
        data[part.name] = _decoded(part) if decodes else bytearray(part.value)
        properties[part.name] = {"content-type": part.content_type}
    tail = _TAIL.match(fields.path)
    # In TorchServe's order; a client's own headers of these names do not count.
    properties["explain"] = str(bool(_EXPLAINED.match(fields.path)))
    ours = ("explain", "url_path")
    properties.update({name: value for name, value in headers.items() if name not in ours})
    properties["url_path"] = tail["tail"] if tail else ""
    return LegacyRequest(data, properties, request_id)


def _parts(content: bytes, content_type: str) -> Iterator[_Part]:
    kind, options = parse_options_header(content_type) if content_type else ("", {})
    if kind == "multipart/form-data" and options.get("boundary"):
        # TorchServe passes over what is no form; what was read so far counts.
        with suppress(MultipartError, UnicodeError):
            yield from _of_form(content, options["boundary"])
    elif kind == "application/x-www-form-urlencoded":
        yield from _of_urlencoded(content)
    else:
        yield _Part(BODY, kind, content)


def _of_form(content: bytes, boundary: str) -> Iterator[_Part]:
    with PushMultipartParser(
        boundary,
        max_segment_count=MAX_PARTS,
        max_header_size=MAX_PART_HEADER_BYTES,
        content_length=len(content),
    ) as parser:
        segment: MultipartSegment | None = None
        value = bytearray()
        for event in parser.parse(content):
            if isinstance(event, MultipartSegment):
                segment, value = event, bytearray()
            elif event:
                value += event
            elif segment is not None:
                yield _part_of(segment, bytes(value))


def _part_of(segment: MultipartSegment, value: bytes) -> _Part:
    """A field without a file is text that is never parsed, whatever type it says."""
    if segment.filename is None:
        return _Part(segment.name, "", value)
    kind = (segment.content_type or "application/octet-stream").partition(";")[0].strip().lower()
    return _Part(segment.name, kind, value)


def _of_urlencoded(content: bytes) -> Iterator[_Part]:
    for pair in content.decode("utf-8", "replace").split("&", MAX_PARTS)[:MAX_PARTS]:
        name, equals, value = pair.partition("=")
        if equals:
            yield _Part(_unquoted(name), "", _unquoted(value).encode())


def _unquoted(text: str) -> str:
    """Return what ``urllib.parse.unquote_plus`` does, which makes objects of each escape and of
    each run of ASCII: seconds and gigabytes for a body of many."""
    raw = np.frombuffer(text.replace("+", " ").encode(), np.uint8).copy()
    if len(raw) > 2:
        first, second = raw[1:-1], raw[2:]
        escapes = (raw[:-2] == ord("%")) & _IS_HEX[first] & _IS_HEX[second]
        raw[:-2][escapes] = _HEX[first[escapes]] * 16 + _HEX[second[escapes]]
        kept = np.ones(len(raw), bool)
        kept[1:-1] &= ~escapes
        kept[2:] &= ~escapes
        raw = raw[kept]
    return raw.tobytes().decode("utf-8", "replace")


def _decoded(part: _Part) -> Any:
    """Return JSON parsed and text decoded; the bytes of what cannot be, and of any other type."""
    try:
        if part.content_type == "application/json":
            return json.loads(part.value.decode())
        if part.content_type.startswith("text"):
            return part.value.decode()
    except (ValueError, RecursionError):
        pass
    return bytearray(part.value)
