"""Forms as the gateway hands them over: plain bytes, and their content type in a header."""

import gzip
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlserve.runtime.body import MAX_JSON_MARKS
from vlserve_worker import bodies

TYPE = "multipart/form-data; boundary=b"
URLENCODED = "application/x-www-form-urlencoded"


def form(parts: Mapping[str, bytes], boundary: bytes = b"b") -> bytearray:
    body = bytearray()
    for name, value in parts.items():
        body += b"--" + boundary + b'\r\nContent-Disposition: form-data; name="'
        body += name.encode() + b'"\r\n\r\n' + value + b"\r\n"
    return body + b"--" + boundary + b"--\r\n"


def request(body: bytearray, content_type: str | None = TYPE) -> dict[str, object]:
    headers = {"x-request-id": "1"}
    if content_type is not None:
        headers["x-vlserve-content-type"] = content_type
    return {
        "headers": [
            {"name": bytearray(name.encode()), "value": bytearray(value.encode())}
            for name, value in headers.items()
        ],
        "parameters": [
            {"name": "top_k", "contentType": "text/plain", "value": bytearray(b"3")},
            {"name": "body", "contentType": "application/octet-stream", "value": body},
        ],
    }


def unwrapped(body: bytearray, content_type: str | None = TYPE) -> dict[str, bytes]:
    raw_request = request(body, content_type)
    bodies.unwrap_body(raw_request, 2**20)
    parts: list[dict[str, bytes]] = raw_request["parameters"]  # type: ignore[assignment]
    return {str(part["name"]): part["value"] for part in parts}


def test_parts_take_the_place_of_the_body_beside_what_the_query_said() -> None:
    image = bytes(range(256)) * 700
    assert unwrapped(form({"text": "猫".encode(), "image": image})) == {
        "top_k": b"3",
        "text": "猫".encode(),
        "image": image,
    }


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.binary(), min_size=1),
    st.from_regex(r"[A-Za-z0-9]{8,70}", fullmatch=True),
)
def test_bytes_come_out_as_they_went_in(parts: dict[str, bytes], boundary: str) -> None:
    kind = f'multipart/form-data; boundary="{boundary}"'
    whole = form(parts, boundary.encode())
    if sum(boundary in value.decode("latin-1") for value in parts.values()) == 0:
        assert bodies.read_form(whole, kind) == parts


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.binary(), min_size=1),
    st.sampled_from([URLENCODED, URLENCODED.title(), f"{URLENCODED}; charset=utf-8"]),
)
def test_an_urlencoded_form_is_read_too(parts: dict[str, bytes], content_type: str) -> None:
    body = bytearray(urlencode(parts).encode())
    assert unwrapped(body, content_type) == {"top_k": b"3"} | parts


BYTES = [bytes([byte]) for byte in b"&=+%;a\xff"]
FRAGMENTS = [*BYTES, b"%41", b"%c3", b"%A9", b"%zz", b"\xc3\xa9"]


@given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=2), max_size=12))
def test_an_urlencoded_form_is_read_as_urllib_reads_it(fragments: list[bytes]) -> None:
    raw = b"".join(fragments)
    pairs = [
        tuple(text.encode("utf-8", "surrogateescape") for text in pair)
        for pair in parse_qsl(
            raw.decode("utf-8", "surrogateescape"),
            keep_blank_values=True,
            errors="surrogateescape",
        )
    ]
    has_names = all(b"=" in pair for pair in raw.split(b"&") if pair)
    expected = dict(pairs)
    if not has_names or not pairs or len(expected) < len(pairs):
        with pytest.raises(bodies.BodyRefused):
            bodies.read_urlencoded(bytearray(raw), URLENCODED)
        return
    fields = bodies.read_urlencoded(bytearray(raw), URLENCODED)
    assert {name.encode("utf-8", "surrogateescape"): fields[name] for name in fields} == expected


def test_bytes_beside_an_escape_cost_no_more_than_others() -> None:
    body = bytearray(b"text=%41" + b"a\xff" * 100_000)
    tracemalloc.start()
    try:
        fields = bodies.read_urlencoded(body, URLENCODED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fields == {"text": b"A" + b"a\xff" * 100_000}
    assert peak < 8 * len(body)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        *((bytearray(body), URLENCODED) for body in (b"cat", b"a=1&a=2", b"&", b"a=1&" * 65)),
        (bytearray(b"a=%E9"), f"{URLENCODED}; charset=latin-1"),
        (bytearray(b"a=1"), f"{URLENCODED}; charset=none"),
        (form({"text": b"cat"})[:-6], TYPE),
        (form({"text": b"cat"})[:40], TYPE),
        (bytearray(b"--b--\r\n"), TYPE),
        (bytearray(b"garbage"), TYPE),
        (form({"text": b"cat"}), "multipart/form-data"),
        (form({"text": b"cat"}), "multipart/form-data; boundary="),
        (form({"text": b"cat"}), "multipart/form-data; boundary=other"),
        (form({"text": b"caf\xe9"}), f"{TYPE}; charset=latin-1"),
        (form({"text": b"cat"}), f"{TYPE}; charset=none"),
        (form({"text": b"cat"})[:-7] + form({"text": b"dog"}), TYPE),
        (form({f"n{number}": b"" for number in range(65)}), TYPE),
        (form({"n" * 9000: b""}), TYPE),
        (form({"": b"cat"}), TYPE),
        (form({"text": b"cat"}).replace(b'; name="text"', b""), TYPE),
        (bytearray(b'{"text": "cat"}'), TYPE),
    ],
    ids=lambda value: None if isinstance(value, str) else bytes(value[-12:]).hex(),
)
def test_what_is_no_whole_form_is_refused_with_a_sentence(
    body: bytearray, content_type: str
) -> None:
    with pytest.raises(bodies.BodyRefused) as error:
        unwrapped(body, content_type)
    assert error.value.code == "body_unreadable"
    assert len(error.value.message.split()) > 3


@pytest.mark.parametrize("content_type", [None, "", "application/json", "text/plain", ";;;"])
def test_a_body_that_is_no_form_is_left_alone(content_type: str | None) -> None:
    body = bytearray(b'{"text": "cat"}')
    assert unwrapped(body, content_type) == {"top_k": b"3", "body": body}


def test_json_of_millions_of_values_is_refused_for_handlers_that_do_not_count() -> None:
    assert bodies.MAX_JSON_MARKS == MAX_JSON_MARKS
    body = bytearray(b'{"a": [' + b"1," * bodies.MAX_JSON_MARKS + b"1]}")
    for content_type in ("application/json", URLENCODED, None):
        with pytest.raises(bodies.BodyRefused) as error:
            unwrapped(body, content_type)
        assert error.value.code == "body_too_complex"


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", ""]), st.text())
def test_any_body_is_read_or_refused(body: bytes, encoding: str, content_type: str) -> None:
    raw_request = request(bytearray(body), content_type)
    headers: list[dict[str, object]] = raw_request["headers"]  # type: ignore[assignment]
    headers.append({"name": bodies.SENT_ENCODING, "value": bytearray(encoding.encode())})
    with suppress(bodies.BodyRefused):
        bodies.unwrap_body(raw_request, 2**20)


def test_packed_bodies_stay_within_their_limit() -> None:
    """What is read is counted, not what is said: a bomb in three streams is one too."""
    data = gzip.compress(bytes(400)) * 3
    with pytest.raises(bodies.BodyRefused) as error:
        bodies.unpacked(bytearray(data), "gzip", 1000)
    assert error.value.code == "body_too_large"
    assert bodies.unpacked(bytearray(data), "gzip", 1200) == bytes(1200)


def test_what_follows_a_stream_is_not_copied_without_end() -> None:
    """32 MiB of empty streams would take a worker half an hour."""
    least = gzip.compress(b"{}") + gzip.compress(b"") * (bodies.MAX_GZIP_STREAMS - 1)
    assert bodies.unpacked(bytearray(least), "gzip", 1000) == b"{}"
    with pytest.raises(bodies.BodyRefused, match="more than 64 gzip streams: pack it as one") as no:
        bodies.unpacked(bytearray(least + gzip.compress(b"")), "gzip", 1000)
    assert no.value.code == "body_too_complex"
