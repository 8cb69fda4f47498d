"""Requests as TorchServe hands them to a handler; held against a stock one in make test-long."""

import tracemalloc
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.legacy_exchanges import END, FORM, part
from vlserve.runtime.exchange import ExchangeFields, unpacked_headers
from vlserve.runtime.legacy_request import MAX_PARTS, LegacyRequest, legacy_request

URLENCODED = "application/x-www-form-urlencoded"
FRAGMENTS = ("%", "%41", "%c3", "%A9", "%e2%82", "%ed%a0", "%zz", "+", "a", "4", "é", "€", "\ufffd")


def _read(
    content: bytes, content_type: str | None = None, path: str = "", decodes: bool = True
) -> LegacyRequest:
    headers = {"content-type": content_type} if content_type else {}
    fields = ExchangeFields(path=path, headers=headers, content=content)
    return legacy_request(fields, decodes, "id")


@pytest.mark.parametrize(
    ("content_type", "content", "value"),
    [
        (None, b'{"a": 1}', bytearray(b'{"a": 1}')),
        ("application/json", b'{"a": 1, "a": 2}', {"a": 2}),
        ("application/json; charset=utf-8", b"[NaN]", pytest.approx([float("nan")], nan_ok=True)),
        ("application/json", b"{", bytearray(b"{")),
        ("application/json", b"", bytearray()),
        ("text/csv", "é".encode(), "é"),
        ("text/plain", b"\xff", bytearray(b"\xff")),
        ("image/png", b"\x89", bytearray(b"\x89")),
    ],
)
def test_a_body_is_decoded_by_its_type(
    content_type: str | None, content: bytes, value: object
) -> None:
    body = _read(content, content_type).data["body"]

    assert body == value
    assert type(body) is not bytes


def test_nothing_is_decoded_where_the_server_did_not() -> None:
    assert _read(b"{}", "application/json", decodes=False).data == {"body": bytearray(b"{}")}


def test_the_parts_of_a_form_are_decoded_by_their_own_types() -> None:
    form = (
        part("json", b"[1]", "application/json", "a.json")
        + part("words", b"caf\xc3\xa9", "text/plain", "a.txt")
        + part("bytes", b"\x00", None, "a.bin")
        + part("field", b"0.5")
        + END
    )

    request = _read(form, FORM)

    assert request.data == {
        "json": [1],
        "words": "café",
        "bytes": bytearray(b"\x00"),
        "field": bytearray(b"0.5"),
    }
    assert request.properties["json"] == {"content-type": "application/json"}


def test_of_two_parts_of_one_name_the_last_counts() -> None:
    form = part("data", b"1", None, "a") + part("data", b"2", None, "b") + END

    assert _read(form, FORM).data == {"data": bytearray(b"2")}


def test_a_form_that_is_cut_short_is_no_error() -> None:
    assert _read(part("data", b"1", None, "a"), FORM).data.keys() <= {"data"}


def test_fields_beyond_the_most_are_passed_over() -> None:
    fields = b"&".join(b"f%d=1" % number for number in range(MAX_PARTS + 1))

    assert list(_read(fields, URLENCODED).data)[-1] == f"f{MAX_PARTS - 1}"


def test_json_that_is_sent_as_a_form_is_lost() -> None:
    assert _read(b'{"a": 1}', URLENCODED).data == {}


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=9))
def test_a_field_is_read_as_urllib_reads_it(fragments: list[str]) -> None:
    text = "".join(fragments).replace("&", "").replace("=", "")
    raw = b"=".join([text.encode("utf-8", "surrogatepass")] * 2)
    seen = raw.decode("utf-8", "replace").partition("=")[0]

    assert _read(raw, URLENCODED).data == {unquote_plus(seen): unquote_plus(seen).encode()}


@pytest.mark.parametrize("text", [b"%41" * 100_000, b"%" * 200_000, b"%41" + b"a\xff" * 100_000])
def test_a_field_costs_no_objects_for_its_escapes(text: bytes) -> None:
    body = b"text=" + text
    tracemalloc.start()
    try:
        request = _read(body, URLENCODED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert list(request.data) == ["text"]
    assert peak < 25 * len(body)


def test_a_header_is_found_whatever_its_case() -> None:
    properties = _read(b"", "text/plain").properties

    assert properties.get("Content-Type") == "text/plain"
    assert properties.get("Accept") is None


@pytest.mark.parametrize(
    ("path", "explain", "tail"),
    [
        ("/predictions/m", "False", ""),
        ("/predictions/m/1.0", "False", ""),
        ("/predictions/m/1.0/a/b?c=1", "False", "a/b"),
        ("/explanations/m", "True", ""),
        ("/v1/models/m:explain", "True", ""),
        ("/v1/models/m:predict", "False", ""),
    ],
)
def test_the_path_says_what_torchserve_makes_headers_of(path: str, explain: str, tail: str) -> None:
    properties = _read(b"", path=path).properties

    assert properties["explain"] == explain
    assert properties["url_path"] == tail


def test_packed_headers_are_unpacked() -> None:
    headers = "x-team:blue accept:text/html,%20*/*;q=0.8 x-odd:%25%3A%E9"

    assert unpacked_headers(headers) == {
        "x-team": "blue",
        "accept": "text/html, */*;q=0.8",
        "x-odd": "%:é",
    }
