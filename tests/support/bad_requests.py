"""Requests that must be refused for anything but their image, and the refusal each must get."""

import json
import zlib
from collections.abc import Iterator
from typing import Any

from support.raw_http import MODEL, Case, chunked, form
from support.request_bodies import (
    BOUNDARY,
    FORM,
    GOOD_FORM,
    GOOD_JSON,
    IMAGE,
    JPEG,
    JSON,
    TEXT,
    as_form,
    as_json,
)
from vlserve.exporter.echo import LABELS

MIB = 1024**2


def bad_texts() -> Iterator[Case]:
    in_forms = {
        "nul": b"cute\0cat",
        "byte-ff": b"\xff",
        "half-a-character": "猫".encode()[:2],
        "overlong": b"\xc0\xaf",
        "surrogate": b"\xed\xa0\x80",
        "above-unicode": b"\xf4\x90\x80\x80",
        "utf-16": "猫咪".encode("utf-16"),
        "gb18030": "猫咪".encode("gb18030"),
        "latin-1": "café".encode("latin-1"),
    }
    for name, raw in in_forms.items():
        yield as_form(f"text-{name}", 400, "text_unreadable", text=raw)
    in_json = {
        "nul": "cute\0cat",
        "high-surrogate": "猫\ud800",
        "low-surrogate": "\udc00 cat",
        "swapped-surrogates": "\udc00\ud800",
        "surrogate-then-text": "\ud83dcat",
    }
    for name, text in in_json.items():
        yield as_json(f"json-text-{name}", 400, "text_unreadable", text=text)
    title = "好" * 350_000
    yield as_form("title-of-1-mb", 413, "text_too_long", text=title.encode())
    yield as_form("title-of-one-byte-too-many", 413, "text_too_long", text=b"x" * 65_537)
    yield as_json("json-title-of-1-mb", 413, "text_too_long", text=title)
    yield as_json("json-title-of-emoji", 413, "text_too_long", text="🏆" * 20_000)


def bad_values() -> Iterator[Case]:
    kinds: dict[str, Any] = {
        "a-number": 3,
        "a-fraction": 0.5,
        "null": None,
        "true": True,
        "a-list": ["x"],
        "an-object": {"x": 1},
    }
    for name, value in kinds.items():
        yield as_json(f"image-is-{name}", 422, "field_invalid", image=value)
        yield as_json(f"text-is-{name}", 422, "field_invalid", text=value)
    numbers: dict[str, Any] = {
        "zero": 0,
        "negative": -1,
        "one-too-many": len(LABELS) + 1,
        "a-fraction": 1.5,
        "a-whole-fraction": 2.0,
        "text": "3",
        "true": True,
        "a-list": [3],
        "huge": 10**30,
        "huge-fraction": 1e300,
    }
    for name, value in numbers.items():
        yield as_json(f"top-k-is-{name}", 422, "field_invalid", top_k=value)
    digits = {
        "empty": b"",
        "zero": b"0",
        "negative": b"-1",
        "signed": b"+1",
        "one-too-many": str(len(LABELS) + 1).encode(),
        "a-word": b"all",
        "a-fraction": b"1.5",
        "a-space": b" 3",
        "hexadecimal": b"0x3",
        "arabic": "٣".encode(),
        "huge": b"9" * 5000,
        "with-a-nul": b"3\0",
        "no-utf-8": b"\xff",
        "sql": b"1; DROP TABLE models",
    }
    for name, raw in digits.items():
        yield as_form(f"form-top-k-is-{name}", 422, "field_invalid", top_k=raw)


def bad_fields() -> Iterator[Case]:
    image, text = {"image": JPEG}, {"text": TEXT.encode()}
    forms: dict[str, dict[str, bytes]] = {
        "no-image": text,
        "no-text": image,
        "only-top-k": {"top_k": b"3"},
        "image-in-capitals": {"IMAGE": JPEG, **text},
        "an-extra-field": {**image, **text, "surprise": b"1"},
        "a-misspelt-field": {**image, **text, "topk": b"3"},
        "a-field-with-a-nul": {**image, **text, "a\0b": b"3"},
        "50-fields": {f"field-{number}": b"" for number in range(50)},
    }
    for name, parts in forms.items():
        body = form(BOUNDARY, parts)
        yield Case(f"form-with-{name}", 422, "field_invalid", body=body, content_type=FORM)
    objects: dict[str, Any] = {
        "nothing": {},
        "no-image": {"text": TEXT},
        "no-text": {"image": IMAGE},
        "an-extra-field": {"image": IMAGE, "text": TEXT, "surprise": 1},
        "an-empty-name": {"image": IMAGE, "text": TEXT, "": 1},
        "proto": {"image": IMAGE, "text": TEXT, "__proto__": {"top_k": 1}},
        "all-in-body": {"body": {"image": IMAGE, "text": TEXT}},
        "all-in-instances": {"instances": [{"image": IMAGE, "text": TEXT}]},
        "a-surrogate-name": {"image": IMAGE, "text": TEXT, "\ud800": 1},
        "a-name-that-steers-a-terminal": {"image": IMAGE, "text": TEXT, "\x1b[2J\r\nX: y": 1},
    }
    for name, value in objects.items():
        body = json.dumps(value).encode()
        yield Case(f"json-with-{name}", 422, "field_invalid", body=body, content_type=JSON)


def bad_json() -> Iterator[Case]:
    def plus(field: bytes) -> bytes:
        return GOOD_JSON[:-1] + b", " + field + b"}"

    bodies = {
        "array": b"[" + GOOD_JSON + b"]",
        "number": b"42",
        "string": b'"image"',
        "null": b"null",
        "true": b"true",
        "nan": b"NaN",
        "empty": b"",
        "spaces": b"   ",
        "cut-at-1": GOOD_JSON[:1],
        "cut-at-half": GOOD_JSON[: len(GOOD_JSON) // 2],
        "cut-before-the-end": GOOD_JSON[:-1],
        "twice": GOOD_JSON + GOOD_JSON,
        "with-a-trailing-comma": GOOD_JSON[:-1] + b",}",
        "with-a-comment": b"/* hello */" + GOOD_JSON,
        "with-nan": plus(b'"top_k": NaN'),
        "with-infinity": plus(b'"top_k": -Infinity'),
        "with-a-name-twice": plus(b'"text": "another"'),
        "with-10000-digits": plus(b'"top_k": ' + b"9" * 10_000),
        "not-utf-8": plus(b'"top_k": "\xff\xfe"'),
        "line-break-in-a-string": b'{"text": "a\nb"}',
        "in-single-quotes": b"{'image': 'x', 'text': 'y'}",
        "nul": b"\0",
        "html": b"<html></html>",
        "jpeg": JPEG,
        "yaml": b"image: x\ntext: y\n",
        "in-zlib": zlib.compress(GOOD_JSON),
    }
    for name, body in bodies.items():
        yield Case(f"json-{name}", 400, "body_unreadable", body=body, content_type=JSON)
    too_complex = {
        "with-a-deep-value": plus(b'"top_k": ' + b"[" * 50_000 + b"]" * 50_000),
        "deep-array": b"[" * 100_000,
        "deep-object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "of-a-million-names": _names(1_000_000),
        "of-65-names": _names(65),
    }
    for name, body in too_complex.items():
        yield Case(f"json-{name}", 413, "body_too_complex", body=body, content_type=JSON)


def _names(count: int) -> bytes:
    """Return an object of ``count`` names, without the seconds that json takes for a million."""
    return b"{" + ", ".join(f'"n{number}": 1' for number in range(count)).encode() + b"}"


def bad_forms() -> Iterator[Case]:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()
    plain = "multipart/form-data"
    bodies: dict[str, tuple[bytes, str]] = {
        "no-boundary": (GOOD_FORM, plain),
        "empty-boundary": (GOOD_FORM, f"{plain}; boundary="),
        "another-boundary": (GOOD_FORM, f"{plain}; boundary=other"),
        "half-a-quoted-boundary": (GOOD_FORM, f'{plain}; boundary="{BOUNDARY}'),
        "unknown-charset": (GOOD_FORM, f"{FORM}; charset=none"),
        "mixed": (GOOD_FORM, f"multipart/mixed; boundary={BOUNDARY}"),
        "cut-in-the-image": (GOOD_FORM[:600], FORM),
        "cut-in-a-head": (GOOD_FORM[:40], FORM),
        "empty": (b"", FORM),
        "only-an-end": (end[2:], FORM),
        "only-text": (b"hello", FORM),
        "json-inside": (GOOD_JSON, FORM),
        "no-name": (head + b"\r\n\r\nv" + end, FORM),
        "empty-name": (head + b'name=""\r\n\r\nv' + end, FORM),
        "name-without-a-value": (head + b"name\r\n\r\nv" + end, FORM),
        "no-disposition": (f"--{BOUNDARY}\r\n\r\nv".encode() + end, FORM),
        "part-of-an-unknown-charset": (
            head + b'name="text"\r\nContent-Type: text/plain; charset=x-none\r\n\r\nv' + end,
            FORM,
        ),
        "nested": (head + b'name="image"\r\nContent-Type: multipart/mixed\r\n\r\n--z' + end, FORM),
        "5000-parts": (form(BOUNDARY, {f"field-{n}": b"" for n in range(5000)}), FORM),
    }
    for name, (body, kind) in bodies.items():
        yield Case(f"form-{name}", 400, "body_unreadable", body=body, content_type=kind)
    # what is said of a file beside its bytes is passed over, so that this lacks its text alone
    disposition = b"name=\"image\"; filename*=x-none''a\r\n\r\nv"
    name = "form-file-name-of-an-unknown-charset"
    yield Case(name, 422, "field_invalid", body=head + disposition + end, content_type=FORM)
    for name, cut in (("no-end", len(end)), ("half-an-end", 6)):
        body = GOOD_FORM[:-cut]
        yield Case(f"form-{name}", 400, "body_unreadable", body=body, content_type=FORM)


def bad_content_types() -> Iterator[Case]:
    for name, kind, body in (
        ("text-plain", "text/plain", TEXT.encode()),
        ("xml", "application/xml", b"<image/>"),
        ("two", f"{FORM}, {JSON}", GOOD_JSON),
    ):
        yield Case(f"type-{name}", 400, "body_unreadable", body=body, content_type=kind)
    for name, kind in (
        ("image-jpeg", "image/jpeg"),
        ("octet-stream", "application/octet-stream"),
        *(("none", None), ("empty", ""), ("nonsense", ";;;")),
    ):  # an image, which lacks its text
        yield Case(f"type-{name}", 422, "field_invalid", body=JPEG, content_type=kind)
    yield Case(
        "type-urlencoded",
        400,
        "image_unreadable",
        body=b"image=x&text=y",
        content_type="application/x-www-form-urlencoded",
    )
    yield Case("no-body", 400, "body_unreadable")
    yield Case("no-body-and-no-length", 400, "body_unreadable", with_length=False)


def too_large() -> Iterator[Case]:
    """Over the image's limit, then over the gateway's."""
    yield as_form("jpeg-of-21-mib", 413, "image_too_large", image=JPEG + bytes(21 * MIB))
    yield as_json("json-of-33-mib", 413, "body_too_large", image="A" * (33 * MIB))
    yield Case(
        "33-mib-in-chunks",
        413,
        "body_too_large",
        body=chunked(bytes(33 * MIB), MIB),
        content_type=FORM,
        headers=(("Transfer-Encoding", "chunked"),),
        with_length=False,
    )


def unknown_names() -> Iterator[Case]:
    def to(name: str, code: str, path: str, **options: Any) -> Case:
        return Case(name, 404, code, body=GOOD_FORM, content_type=FORM, path=path, **options)

    models = ("none", "Model", "model", "a" * 500, "*", "-", "model-1.mar", f"{MODEL}2", "null")
    for model in models:
        yield to(f"model-{model[:12]}", "model_not_found", f"/predictions/{model}")
    versions = ("2", "0", "-1", "+1", "01", "1.0", "1e0", "v1", "latest", "stable", "null", "*")
    versions += ("99999", "2147483648", "9" * 40, "1,2", "0x1")
    for version in (*versions, "1/2", "1;2", "1%3F"):
        path = f"/predictions/{MODEL}/{version}"
        yield to(f"version-{version[:12]}", "version_not_found", path)
    for version in (*versions, "１", "1;"):
        yield to(
            f"asked-version-{version[:12]}",
            "version_not_found",
            f"/predictions/{MODEL}",
            headers=(("X-Model-Version", version),),
        )
    for path in (
        *("/", "//", "/prediction", "/predictions", "/Predictions/x", "/models"),
        *("/metrics", "/v3/models/x/infer"),
        *("/../etc/passwd", "/predictions/x/../../models", "/%"),
    ):
        yield to(f"path-{path}", "not_found", path)
    yield to("path-explanations", "model_not_found", "/explanations/x")
    for path in ("/invocations", "/wfpredict/x", f"/{MODEL}/predict", f"/explanations/{MODEL}"):
        yield Case(f"path-{path}", 501, "not_implemented", path=path)
    yield Case("path-/ping", 405, "method_not_allowed", path="/ping")


def bad_http() -> Iterator[Case]:
    for method in ("GET", "PUT"):
        yield Case(f"method-{method}", 400, "body_unreadable", method=method)
    for method in ("DELETE", "PATCH", "TRACE"):
        yield Case(f"method-{method}", 405, "method_not_allowed", method=method)

    def bad(name: str, status: int, code: str, *lines: bytes, start: bytes = b"") -> Case:
        first = start or b"POST /predictions/x HTTP/1.1\r\nHost: x"
        return Case(name, status, code, raw=b"\r\n".join((first, *lines, b"", b"")))

    for path in (b"/%00", b"/predictions/..%2fx", b"/predictions/\xff", "/🏆".encode(), b"/x#x"):
        start = b"POST " + path + b" HTTP/1.1\r\nHost: x"
        yield bad(f"path-{path!r}", 400, "bad_request", start=start)
    for name, start in (
        ("made-up-method", b"FROB / HTTP/1.1\r\nHost: x"),
        ("method-in-small-letters", b"post / HTTP/1.1\r\nHost: x"),
        ("no-host", b"POST / HTTP/1.1"),
        ("https-without-tls", b"POST https://x/predictions/x HTTP/1.1\r\nHost: x"),
        ("not-http", b"hello"),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100))),
    ):
        yield bad(name, 400, "bad_request", start=start)
    for name, start in (
        ("http-0.9", b"POST /predictions/x"),
        ("http-1.0", b"POST /predictions/x HTTP/1.0"),
        ("http-3.0", b"POST /predictions/x HTTP/3.0\r\nHost: x"),
    ):
        yield bad(name, 404, "model_not_found", start=start)
    for name, line in (
        ("header-without-a-colon", b"hello"),
        ("header-with-a-space", b"A b: c"),
        ("header-with-a-nul", b"A: b\0c"),
        ("header-without-a-name", b": b"),
        ("length-twice", b"Content-Length: 3\r\nContent-Length: 4"),
        ("length-negative", b"Content-Length: -1"),
        ("length-a-word", b"Content-Length: many"),
        ("length-and-chunked", b"Content-Length: 3\r\nTransfer-Encoding: chunked"),
    ):
        yield bad(name, 400, "bad_request", line)
    header = b"Transfer-Encoding: gzip, chunked"
    yield bad("transfer-encoding-gzip", 501, "transfer_encoding_unsupported", header)
    yield bad("header-of-40-kb", 431, "headers_too_large", b"A: " + b"x" * 40_000)
    path = b"POST /predictions/x?text=" + b"x" * 4000
    yield bad("path-of-4-kb", 414, "path_too_long", start=path + b" HTTP/1.1\r\nHost: x")
    yield bad("150-headers", 431, "headers_too_large", *[b"A: b"] * 150)
