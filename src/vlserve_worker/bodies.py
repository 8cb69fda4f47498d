"""What callers send as a body -> named values, or why it cannot be read.

RFC 7578 (forms), RFC 2046 (multipart) and what clients make of them:
docs/reference/request-forms.md lists each variant, and tests hold the list.
"""

import binascii
import codecs
import re
import zlib
from collections.abc import Mapping, MutableSequence
from typing import Any
from urllib.parse import unquote_to_bytes

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

SENT_TYPE = b"x-vlserve-content-type"
"""The gateway's header with the content type of a body, which it hands over as plain bytes."""

SENT_PATH = b"x-vlserve-path"
"""The gateway's header with the path and query that the client asked for: TorchServe drops them."""

SENT_ENCODING = b"x-vlserve-content-encoding"
"""The gateway's header with the Content-Encoding of a body."""

REQUEST_ID = b"x-request-id"
"""The header with the name of a request in every log."""

UNTYPED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of which a body may be an image by its first bytes; curl says the last of all it sends."""

MAX_PARTS = 64
MAX_HEADER_BYTES = 8192
MAX_ESCAPES = 1_000_000
"""Percent signs of an urlencoded form: each is an object of its own while it is read."""

MAX_GZIP_STREAMS = 64
"""Most gzip streams one after the other: what follows a stream is copied, each time whole."""

MAX_JSON_MARKS = 1_000_000
"""Most commas, colons, brackets and braces of a JSON body, as vlserve.runtime.body has it."""

MAX_QUOTED_CHARS = 50
"""Most characters of a caller's own words in a message."""

UNREADABLE = "body_unreadable"
TOO_LARGE = "body_too_large"
TOO_COMPLEX = "body_too_complex"

IMAGES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP", re.DOTALL)
"""How the image files begin that a model reads."""

ASCII_AND_MORE = re.compile(
    r"ascii|utf-8|iso8859-\d+|cp12\d\d|koi8-[ru]|gbk|gb2312|gb18030|big5(hkscs)?|cp9\d\d"
    r"|euc_\w+|shift_jis\w*|mac-roman|tis-620"
)
"""Python's names of the charsets in which ASCII's bytes mean what they mean in UTF-8."""

OTHER_CHARSET = "send UTF-8"


class BodyRefused(ValueError):
    """A body that is not read; ``code`` as clients see it."""

    def __init__(self, message: str, code: str = UNREADABLE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


Parts = dict[str, bytearray]


def unwrap_body(request: dict[str, Any], max_bytes: int) -> None:
    """Put what a body holds in its place, in a request as TorchServe's worker reads it: the parts
    of a form, an image's bytes as the field ``image``. JSON stays, for the handler.

    Raises BodyRefused: it cannot be read, or has more than ``max_bytes`` once unpacked.
    """
    parameters: MutableSequence[dict[str, Any]] = request["parameters"]
    at = next(
        (place for place, parameter in enumerate(parameters) if parameter["name"] == "body"), None
    )
    if at is None:
        return
    body = unpacked(parameters[at]["value"], _header(request, SENT_ENCODING), max_bytes)
    _, _, query = _header(request, SENT_PATH).partition("?")
    parts = _parts(body, _header(request, SENT_TYPE), query)
    if parts is None:
        parameters[at]["value"] = body
        return
    parameters[at : at + 1] = [
        {"name": name, "contentType": "application/octet-stream", "value": value}
        for name, value in parts.items()
    ]


def quoted(words: str) -> str:
    """Return a caller's words as a message quotes them: at most MAX_QUOTED_CHARS, in quotes."""
    return repr(words if len(words) <= MAX_QUOTED_CHARS else f"{words[: MAX_QUOTED_CHARS - 1]}…")


def header_value(request: Mapping[str, Any], name: bytes) -> bytes:
    """Return the value of a header of a request as TorchServe's worker reads it; empty where it is
    not there. ``name``: in lower case."""
    values = (
        header["value"] for header in request["headers"] if bytes(header["name"]).lower() == name
    )
    return bytes(next(values, b""))


def _header(request: Mapping[str, Any], name: bytes) -> str:
    return header_value(request, name).decode("latin-1")


def _parts(body: bytearray, content_type: str, query: str) -> Parts | None:
    """Return bytes by field name; None of what may be JSON. The query counts where the body is an
    image's bytes, or there is none: beside a form or JSON it never did."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body and not query:
        raise BodyRefused("the request has no body")
    is_image = kind.startswith("image/") or (kind in UNTYPED and IMAGES.match(body))
    if not body or is_image:
        fields = _fields(query.encode("latin-1"), "query") if query else {}
        if body and "image" in fields:
            raise BodyRefused("the field 'image' stands in the query and in the body")
        return fields | ({"image": body} if body else {})
    if kind == "multipart/form-data":
        return read_form(body, content_type)
    if kind.startswith("multipart/"):
        raise BodyRefused(f"{quoted(kind)} is not read: send multipart/form-data")
    begins_as_json = body[:64].lstrip().startswith((b"{", b"["))
    if kind == "application/x-www-form-urlencoded":  # of curl, whatever the body is
        if not begins_as_json:
            return read_urlencoded(body, content_type)
        kind = ""
    if body[:2] == b"\x1f\x8b":
        raise BodyRefused("the body is packed by gzip: say Content-Encoding: gzip")
    if not begins_as_json and not _may_hold_json(kind):
        raise BodyRefused(
            f"the content type {quoted(kind)} is not read: send a multipart form, JSON, or an image"
        )
    _check_marks(body)
    return None


def has_too_many_values(json: bytes | bytearray) -> bool:
    """Return whether JSON, which is not parsed for it, has more marks than MAX_JSON_MARKS."""
    return sum(json.count(mark) for mark in b",:[{") > MAX_JSON_MARKS


def _check_marks(body: bytearray) -> None:
    """Refuse JSON of too many values: handlers of older archives parse it uncounted."""
    if has_too_many_values(body):
        raise BodyRefused(f"the JSON body has more than {MAX_JSON_MARKS} values", TOO_COMPLEX)


def _may_hold_json(kind: str) -> bool:
    return kind in ("", "text/plain", "application/octet-stream") or kind.endswith("json")


# Content-Encoding


def unpacked(body: bytearray, encoding: str, max_bytes: int) -> bytearray:
    """Return the body as it was before the client packed it. Raises BodyRefused."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise BodyRefused(
            f"the content encoding {quoted(name)} is not read: send gzip, deflate or none"
        )
    try:
        return _inflated(body, _window(body, name), max_bytes)
    except zlib.error as error:
        raise BodyRefused(f"the body is said to be {name}, and is not: {error}") from error


def _window(body: bytearray, name: str) -> int:
    """Return zlib's number for the format. Deflate is zlib's by RFC 9110, but bare from some."""
    if name != "deflate":
        return 16 + zlib.MAX_WBITS
    has_head = body[:1] and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS


def _inflated(body: bytearray, window: int, max_bytes: int) -> bytearray:
    data, rest, streams = bytearray(), bytes(body), 0
    while rest:  # gzip may be several streams, one after the other
        streams += 1
        if streams > MAX_GZIP_STREAMS:
            raise BodyRefused(
                f"the body is packed in more than {MAX_GZIP_STREAMS} gzip streams: pack it as one",
                TOO_COMPLEX,
            )
        stream = zlib.decompressobj(window)
        data += stream.decompress(rest, max_bytes + 1 - len(data))
        if len(data) > max_bytes:
            raise BodyRefused(
                f"the body has more than {max_bytes} bytes once it is unpacked", TOO_LARGE
            )
        if not stream.eof:
            raise zlib.error("it is cut short")
        rest = stream.unused_data
        if window < 16 or not rest.startswith(b"\x1f\x8b"):
            break
    return data


# Forms


def read_form(body: bytearray, content_type: str) -> Parts:
    """Read a multipart form: field name -> bytes. Raises BodyRefused in the parser's words."""
    options = _options(content_type)
    if not options.get("boundary"):
        raise BodyRefused(
            "the content type multipart/form-data names no boundary: "
            "let the HTTP library set Content-Type itself"
        )
    try:
        parts = _segments(body, options["boundary"])
    except MultipartError as error:
        raise BodyRefused(f"the multipart form cannot be read: {error.args[0]}") from error
    if not parts:
        raise BodyRefused("the multipart form has no parts")
    charset = options.get("charset") or ""
    if "_charset_" in parts:  # RFC 7578, 4.6
        charset = bytes(parts.pop("_charset_")[1]).decode("latin-1")
    return {name: _decoded(segment, raw, charset) for name, (segment, raw) in parts.items()}


def _segments(body: bytearray, boundary: str) -> dict[str, tuple[MultipartSegment, bytearray]]:
    parts: dict[str, tuple[MultipartSegment, bytearray]] = {}
    part = bytearray()
    with PushMultipartParser(
        boundary, max_header_size=MAX_HEADER_BYTES, max_segment_count=MAX_PARTS
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                part = bytearray()
                parts[_new_name(event, parts)] = event, part
            elif event:
                part += event
    return parts


def _new_name(segment: MultipartSegment, parts: Mapping[str, Any]) -> str:
    name: str | None = segment.name
    if not name:
        if "name*" in (segment.header("Content-Disposition") or ""):
            raise BodyRefused('a part names its field by name*=: write name="…", in UTF-8')
        raise BodyRefused("a part of the form has no name")
    if name in parts:
        raise BodyRefused(f"the form has the field {quoted(name)} twice")
    return name


def _decoded(segment: MultipartSegment, raw: bytearray, form_charset: str) -> bytearray:
    """Return a part's bytes as they were meant."""
    name = quoted(segment.name)
    kind = segment.content_type or "text/plain"
    if kind.startswith("multipart/"):
        raise BodyRefused(f"{name} holds several files ({quoted(kind)}): send one in each field")
    encoding = (segment.header("Content-Encoding") or "").strip().lower()
    if encoding not in ("", "identity"):
        raise BodyRefused(
            f"{name} is packed by {quoted(encoding)}: pack the whole body, or nothing"
        )
    value = _transferred(raw, segment.header("Content-Transfer-Encoding") or "", name)
    if segment.filename is None and kind.startswith("text/"):
        _check_charset(value, segment.charset or form_charset, name)
    elif kind.startswith("text/") and segment.charset:
        _check_charset(value, segment.charset, name)
    return value


def _transferred(raw: bytearray, encoding: str, name: str) -> bytearray:
    """Return the bytes that a Content-Transfer-Encoding stands for, as mail libraries write it."""
    match encoding.strip().lower():
        case "" | "7bit" | "8bit" | "binary":
            return raw
        case "quoted-printable":
            return bytearray(binascii.a2b_qp(raw))
        case "base64":
            try:
                return bytearray(
                    binascii.a2b_base64(raw.translate(None, b"\r\n\t "), strict_mode=True)
                )
            except binascii.Error as error:
                raise BodyRefused(f"{name} is said to be base64, and is not: {error}") from error
        case other:
            raise BodyRefused(
                f"the transfer encoding {quoted(other)} of {name} is not read: send binary"
            )


def read_urlencoded(body: bytearray, content_type: str) -> Parts:
    """Read an urlencoded form: field name -> bytes. Raises BodyRefused."""
    parts = _fields(body, "form")
    charset = _options(content_type).get("charset") or ""
    if "_charset_" in parts:
        charset = bytes(parts.pop("_charset_")).decode("latin-1")
    for name, raw in parts.items():
        _check_charset(raw, charset, quoted(name))
    return parts


def _fields(raw: bytes | bytearray, where: str) -> Parts:
    if raw.count(b"%") > MAX_ESCAPES:
        raise BodyRefused(
            f"the {where} has more than {MAX_ESCAPES} percent signs: send a multipart form",
            TOO_COMPLEX,
        )
    if raw.count(b"&") >= MAX_PARTS:
        raise BodyRefused(f"the {where} has more than {MAX_PARTS} fields")
    pairs = [pair.partition(b"=") for pair in bytes(raw).split(b"&") if pair]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise BodyRefused(f"the {where} is not written name=value&name=value")
    parts: Parts = {}
    for quoted_name, _, value in pairs:
        name = _unquoted(quoted_name).decode("utf-8", "surrogateescape")
        if name in parts:
            raise BodyRefused(f"the {where} has the field {quoted(name)} twice")
        parts[name] = bytearray(_unquoted(value))
    return parts


def _unquoted(raw: bytes) -> bytes:
    """Return what was percent-encoded. As text, urllib would take it apart at each byte that is no
    ASCII, for 60 bytes of memory each."""
    return unquote_to_bytes(raw.replace(b"+", b" "))


def _options(content_type: str) -> dict[str, str]:
    options: dict[str, str] = parse_options_header(content_type)[1]
    return options


def _check_charset(value: bytearray, message: str, name: str) -> None:
    """Refuse bytes that mean something else in UTF-8 than in the charset that is said."""
    charset = message.strip().strip("\"'")
    try:
        codec = codecs.lookup(charset).name if charset else "utf-8"
    except (LookupError, ValueError):
        codec = ""
    if codec == "utf-8" or (value.isascii() and ASCII_AND_MORE.fullmatch(codec)):
        return
    raise BodyRefused(f"the charset {quoted(charset)} of {name} is not read: {OTHER_CHARSET}")
