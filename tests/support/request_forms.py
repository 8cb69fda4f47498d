"""Every way to write one request: the rows of docs/reference/request-forms.md, each with its bytes.

All that are read say the same: the image IMAGE and the text TEXT.
"""

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from urllib.parse import quote_plus, urlencode

from support.multipart_variants import WHOLE, charsets, parts, whole_forms
from support.request_bodies import FORM, JPEG
from support.request_variant import B64, CHINESE, JSON, LINES, READ, TEXT, URLENCODED, Variant


def variants() -> list[Variant]:
    """Return all of them, in the order of the page."""
    return [*whole_forms(), *parts(), *charsets(), *_urlencoded(), *_json(), *_raw(), *_packed()]


def _urlencoded() -> Iterator[Variant]:
    def variant(
        what: str, by: str, outcome: str, body: str | bytes, kind: str = URLENCODED
    ) -> Variant:
        return Variant(what, by, outcome, body.encode() if isinstance(body, str) else body, kind)

    good = urlencode({"image": B64, "text": TEXT})
    yield variant("x-www-form-urlencoded", "HTML forms, curl --data-urlencode, Java", READ, good)
    yield variant(
        "charset=UTF-8 beside it", "jQuery, .NET", READ, good, f"{URLENCODED}; charset=UTF-8"
    )
    yield variant(
        "raw bytes, percent-encoded", "HTML forms", READ, urlencode({"image": JPEG, "text": TEXT})
    )
    yield variant(
        "JSON under this type", "curl -d without -H", READ, json.dumps({"image": B64, "text": TEXT})
    )
    yield Variant(
        "base64 whose + is not percent-encoded",
        "written by hand",
        "image is not base64: it holds spaces: percent-encode + as %2B in a form",
        f"text={quote_plus(TEXT)}&image={B64}".encode(),
        URLENCODED,
        code="image_unreadable",
    )
    yield variant(
        "a field twice in it", "", "the form has the field 'text' twice", f"{good}&text=x"
    )
    yield variant(
        "no name=value",
        "curl -d hello",
        "the form is not written name=value&name=value",
        "hello",
    )
    yield variant("more than 64 fields", "", "the form has more than 64 fields", "a=1&" * 65)
    yield variant(
        "another charset in it",
        "",
        "the charset 'GBK' of 'text' is not read: send UTF-8",
        urlencode({"text": CHINESE}, encoding="gbk"),
        f"{URLENCODED}; charset=GBK",
    )


def _json() -> Iterator[Variant]:
    def variant(
        what: str,
        by: str,
        outcome: str,
        body: bytes,
        kind: str | None = JSON,
        code: str = "body_unreadable",
    ) -> Variant:
        return Variant(what, by, outcome, body, kind, code=code)

    def with_image(image: str) -> bytes:
        return json.dumps({"image": image, "text": TEXT}).encode()

    good = with_image(B64)
    yield variant("JSON", "all", READ, good)
    yield variant("JSON without a content type", "Go, raw sockets", READ, good, None)
    yield variant(
        "JSON as text/plain", "fetch with a string", READ, good, "text/plain;charset=UTF-8"
    )
    yield variant("application/…+json", "Spring, .NET", READ, good, "application/vnd.api+json")
    yield variant(
        "JSON as octet-stream", "curl --data-binary", READ, good, "application/octet-stream"
    )
    yield variant(
        "JSON of a charset: it is UTF-8 all the same",
        "RFC 8259",
        READ,
        good,
        f"{JSON}; charset=ISO-8859-1",
    )
    yield variant("JSON with a byte order mark", ".NET, Windows", READ, b"\xef\xbb\xbf" + good)
    yield variant("JSON of UTF-16 or UTF-32", "RFC 4627", READ, good.decode().encode("utf-16"))
    yield variant("base64 in lines, in JSON", "Android, Ruby", READ, with_image(LINES))
    yield variant(
        "URL-safe base64",
        "Java's getUrlEncoder, Go's URLEncoding",
        READ,
        with_image(base64.urlsafe_b64encode(JPEG).decode()),
    )
    yield variant(
        "a data URI in JSON",
        "FileReader, canvas",
        READ,
        with_image(f"data:image/jpeg;base64,{B64}"),
    )
    yield variant(
        "a data URI that is not base64",
        "",
        "image is not base64: the data URI does not say ;base64",
        with_image("data:image/svg+xml,%3Csvg%3E"),
        code="image_unreadable",
    )
    yield variant(
        "base64 without its padding",
        "JavaScript",
        "image is not base64: Incorrect padding",
        with_image(base64.b64encode(b"1234").decode().rstrip("=")),
        code="image_unreadable",
    )
    yield variant(
        "JSON that is cut short",
        "",
        "the body is not JSON: Unterminated string starting at: "
        "line 1 column 11 (char 10), at '\"/9j",
        good[:40],
    )
    yield variant(
        "a list, a number, a text", "", "the JSON body must be an object, not list", b"[1]"
    )
    yield variant(
        "a name twice in one object",
        "",
        "the body is not JSON: a name is twice in one object",
        b'{"text": "a", "text": "b"}',
    )
    yield variant(
        "NaN, Infinity",
        "Python's json",
        "the body is not JSON: NaN is no JSON number",
        b'{"top_k": NaN}',
    )
    yield variant(
        "GBK in JSON",
        "",
        "the body is not JSON: 'utf-8' codec can't decode byte 0xbf in "
        "position 10: invalid start byte: send UTF-8",
        json.dumps({"text": CHINESE}, ensure_ascii=False).encode("gbk"),
    )
    yield variant(
        "more than 64 names",
        "",
        "the JSON body has 65 fields, the limit is 64",
        json.dumps({str(number): 1 for number in range(65)}).encode(),
        code="body_too_complex",
    )
    yield variant(
        "more than 1,000,000 values",
        "",
        "the JSON body has more than 1000000 values",
        b'{"a": [' + b"1," * 1_000_000 + b"1]}",
        code="body_too_complex",
    )
    yield variant(
        "more than 32 levels",
        "",
        "the JSON body has more than 32 levels of lists and objects",
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        code="body_too_complex",
    )


def _raw() -> Iterator[Variant]:
    query = (("text", TEXT.encode()),)

    def variant(what: str, by: str, kind: str | None) -> Variant:
        return Variant(what, by, READ, JPEG, kind, query=query)

    yield variant("an image's bytes with its type, and `?text=`", "TorchServe's way", "image/jpeg")
    yield variant("the same with another image's type", "", "image/png")
    yield variant("the same as octet-stream", "axios, Go", "application/octet-stream")
    yield variant("the same without a type", "curl -T, raw sockets", None)
    yield variant("the same as urlencoded", "curl --data-binary @file", URLENCODED)
    yield Variant(
        "all fields in the query, and no body",
        "",
        READ,
        b"",
        query=(("image", B64.encode()), *query),
    )
    yield Variant(
        "a field twice in the query",
        "",
        "the query has the field 'text' twice",
        JPEG,
        "image/jpeg",
        query=query * 2,
    )
    yield Variant("nothing", "", "the request has no body", b"")
    yield Variant(
        "another content type",
        "SOAP, protobuf",
        "the content type 'application/xml' is not read: send a multipart form, JSON, or an image",
        b"<image/>",
        "application/xml",
    )
    yield Variant(
        "neither JSON nor an image",
        "",
        "the body is not JSON: Expecting value: line 1 column 1 (char 0), at 'hello'",
        b"hello",
    )


def _packed() -> Iterator[Variant]:
    good = json.dumps({"image": B64, "text": TEXT}).encode()

    def variant(
        what: str,
        by: str,
        outcome: str,
        body: bytes,
        encoding: str,
        kind: str = JSON,
        code: str = "body_unreadable",
    ) -> Variant:
        return Variant(what, by, outcome, body, kind, encoding, code=code)

    gzip_body = gzip.compress(good)
    bare = zlib.compressobj(wbits=-15)
    yield variant(
        "Content-Encoding: gzip", "Java, .NET, Go with a setting", READ, gzip_body, "gzip"
    )
    yield variant("a form, packed", "", READ, gzip.compress(WHOLE), "gzip", FORM)
    yield variant(
        "gzip in several streams",
        "pigz, bgzip",
        READ,
        gzip.compress(good[:99]) + gzip.compress(good[99:]),
        "x-gzip",
    )
    yield variant(
        "gzip in more than 64 streams",
        "",
        "the body is packed in more than 64 gzip streams: pack it as one",
        gzip_body + gzip.compress(b"") * 64,
        "gzip",
        code="body_too_complex",
    )
    yield variant("deflate", "", READ, zlib.compress(good), "deflate")
    yield variant(
        "deflate without zlib's head",
        "old .NET",
        READ,
        bare.compress(good) + bare.flush(),
        "Deflate",
    )
    yield variant("identity", "", READ, good, "identity")
    yield variant(
        "br, zstd, compress",
        "",
        "the content encoding 'br' is not read: send gzip, deflate or none",
        b"x",
        "br",
    )
    yield variant(
        "said to be gzip, and is not",
        "",
        "the body is said to be gzip, and is not: Error -3 "
        "while decompressing data: incorrect header check",
        good,
        "gzip",
    )
    yield variant(
        "gzip that is cut short",
        "",
        "the body is said to be gzip, and is not: it is cut short",
        gzip_body[:-20],
        "gzip",
    )
    yield variant(
        "gzip, and nobody says so",
        "",
        "the body is packed by gzip: say Content-Encoding: gzip",
        gzip_body,
        "",
    )
    yield variant(
        "more than `gateway.max_body_bytes` once unpacked",
        "",
        "the body has more than 33554432 bytes once it is unpacked",
        gzip.compress(bytes(33_554_433)),
        "gzip",
        code="body_too_large",
    )
