"""Requests that must be answered although they look odd, or come beside bad ones."""

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from support.bad_images import whole_images
from support.raw_http import MODEL, Case, chunked
from support.request_bodies import (
    BOUNDARY,
    FORM,
    GOOD_FORM,
    GOOD_JSON,
    IMAGE,
    JPEG,
    JSON,
    PNG,
    TEXT,
    as_form,
    as_json,
)

_TEXTS = {
    "empty": "",
    "blank": "   ",
    "emoji": "🏆👨‍👩‍👧",
    "markup": "<script>alert('x')</script>",
    "right-to-left": "مرحبا \u202e abc",
    "as-long-as-it-may-be": "x" * 65_536,
    "line-breaks": "one\r\ntwo\n",
}


_BASE64: dict[str, Callable[[str], str]] = {
    "with-line-breaks": lambda text: f"{text[:60]}\r\n{text[60:]}\n",
    "in-a-data-url": lambda text: f"data:image/jpeg;base64,{text}",
    "url-safe": lambda text: text.replace("+", "-").replace("/", "_"),
}


def good_requests() -> Iterator[Case]:
    """Inputs that differ, each with an answer of its own; then odd wrappings of one input."""
    for kind, raw in whole_images().items():
        yield as_form(f"{kind}", 200, "", image=raw)
        in_json = base64.b64encode(raw).decode()
        yield as_json(f"{kind}-in-json", 200, "", image=in_json, text=f"a {kind}")
    for top_k in range(1, 6):
        yield as_json(f"top-{top_k}", 200, "", image=base64.b64encode(PNG).decode(), top_k=top_k)
        yield as_form(f"form-top-{top_k}", 200, "", text=b"%d" % top_k, top_k=b"%d" % top_k)
    for name, text in _TEXTS.items():
        yield as_form(f"text-{name}", 200, "", text=text.encode())
        yield as_json(f"json-text-{name}", 200, "", image=IMAGE, text=text, top_k=None)


def oddly_wrapped() -> Iterator[Case]:
    """One good input, wrapped in ways that must make no difference."""
    headers: dict[str, tuple[tuple[str | bytes, str | bytes], ...]] = {
        "not-utf-8": ((b"X-Title", b"\xff\xfe"), (b"User-Agent", b"\x80")),
        "chinese": (("X-Title", "可爱的猫咪"), ("Cookie", "封面=1")),
        "long": (("X-Note", "x" * 20_000),),
        "of-the-engine": (("Authorization", "Bearer x"), ("Explain", "true")),
        "of-the-gateway": (("X-Envoy-Upstream-Rq-Timeout-Ms", "1"), ("X-Envoy-Max-Retries", "9")),
        "of-our-own": (("X-Vlserve-Version", "9"), ("X-Vlserve-Retry", "1")),
        "with-a-sticky-key": (("X-Sticky-Key", "ключ"),),
        "with-an-empty-version": (("X-Model-Version", ""),),
        "with-the-version": (("X-Model-Version", " 1 "),),
        "that-expect-continue": (("Expect", "100-continue"),),
        "of-another-host": (("X-Forwarded-Host", "evil"), ("X-Original-Url", "/none")),
    }
    for name, pairs in headers.items():
        yield _odd(f"headers-{name}", headers=pairs)
    paths = (
        "/predictions/{}/1",
        "//predictions//{}",
        "/none/../predictions/{}",
        "/predictions/./{}",
        *("/predictions/{}/", "/predictions/{}/1/"),
    )
    for path in (*paths, "/predictions/{}?top_k=1&text=x", "/predictions/{}/%31"):
        yield _odd(f"path-{path}", path=path.format(MODEL))
    yield _odd("type-in-quotes", content_type=f'multipart/form-data; boundary="{BOUNDARY}"')
    yield _odd("json-with-a-charset", body=GOOD_JSON, content_type=f"{JSON}; charset=utf-8")
    yield _odd("json-without-a-type", body=GOOD_JSON, content_type=None)
    yield _odd("json-of-utf-16", body=GOOD_JSON.decode().encode("utf-16"), content_type=JSON)
    yield _odd("json-unescaped", body=_unescaped(GOOD_JSON), content_type=JSON)
    for name, change in _BASE64.items():
        fields = {"image": change(IMAGE), "text": TEXT}
        body = json.dumps(fields).encode()
        yield _odd(f"json-of-base64-{name}", body=body, content_type=JSON)
        yield as_form(f"form-of-base64-{name}", 200, "", image=change(IMAGE).encode())
    for kind in ("image/jpeg", "application/octet-stream", None):
        path = f"/predictions/{MODEL}?text={quote(TEXT)}"
        yield _odd(f"raw-bytes-as-{kind}", body=JPEG, content_type=kind, path=path)
    for encoding, content in (
        ("gzip", gzip.compress(GOOD_FORM)),
        ("deflate", zlib.compress(GOOD_FORM)),
    ):
        yield _odd(f"in-{encoding}", body=content, headers=(("Content-Encoding", encoding),))
    yield _odd("form-with-an-epilogue", body=GOOD_FORM + b"hello")
    yield _odd(
        "in-chunks",
        body=chunked(GOOD_FORM, 100),
        headers=(("Transfer-Encoding", "chunked"),),
        with_length=False,
    )


def _odd(name: str, body: bytes = GOOD_FORM, content_type: str | None = FORM, **how: Any) -> Case:
    return Case(name, 200, "", body=body, content_type=content_type, **how)


def _unescaped(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw), ensure_ascii=False).encode()
