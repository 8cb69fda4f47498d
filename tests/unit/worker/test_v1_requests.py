"""KServe's V1 protocol in the worker: one request to its items, their answers to one."""

import gzip
import json
from typing import Any

import pytest

from vlserve_worker.several_items import ItemAnswer
from vlserve_worker.v1 import open_v1
from vlserve_worker.v2.messages import MAX_ITEMS

LIMIT = 1_000_000


def _raw(body: bytes, **headers: str) -> dict[str, Any]:
    fields = {"x-request-id": "r", "x-vlserve-content-type": "text/plain", **headers}
    return {
        "headers": [{"name": name.encode(), "value": v.encode()} for name, v in fields.items()],
        "parameters": [{"name": "body", "contentType": "x", "value": bytearray(body)}],
    }


def _told(content: Any) -> bytes:
    return json.dumps(content).encode()


def _bodies(body: bytes, **headers: str) -> list[Any]:
    exchange = open_v1(_raw(body, **headers), LIMIT)
    assert exchange.refusal is None
    return [json.loads(bytes(item["parameters"][0]["value"])) for item in exchange.items]


def _header(item: dict[str, Any], name: bytes) -> list[bytes]:
    return [header["value"] for header in item["headers"] if header["name"] == name]


def test_each_instance_is_a_plain_json_request() -> None:
    instances = [{"image": "aGk=", "text": "猫"}, {"text": ""}, 3]
    body = _told({"instances": instances, "signature_name": "x"})
    assert _bodies(body) == instances
    payload = gzip.compress(body)
    assert _bodies(payload, **{"x-vlserve-content-encoding": "gzip"}) == instances
    items = open_v1(_raw(payload, **{"x-vlserve-content-encoding": "gzip"}), LIMIT).items
    for item in items:
        assert _header(item, b"x-vlserve-content-encoding") == []
        assert _header(item, b"x-vlserve-content-type") == [b"application/json"]
    assert [_header(item, b"x-request-id") for item in items] == [
        [b"r~0~3"],
        [b"r~1~3"],
        [b"r~2~3"],
    ]
    (alone,) = open_v1(_raw(_told({"instances": [1]})), LIMIT).items
    assert _header(alone, b"x-request-id") == [b"r"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "body_unreadable"),
        (b"{", "body_unreadable"),
        (b"[1]", "body_unreadable"),
        (b"{}", "body_unreadable"),
        (b'{"instances": {}}', "body_unreadable"),
        (b'{"instances": []}', "body_unreadable"),
        (b'{"instances": [NaN]}', "body_unreadable"),
        (b'{"instances": [{"text": "a", "text": "b"}]}', "body_unreadable"),
        (b"[" * 100_000, "body_too_complex"),
        (_told({"instances": [1] * (MAX_ITEMS + 1)}), "too_many_items"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, code: str) -> None:
    exchange = open_v1(_raw(body), LIMIT)
    assert exchange.items == ()
    assert exchange.refusal is not None and exchange.refusal.code == code
    error = json.dumps({"error": {"code": code, "message": "why"}}).encode()
    whole = exchange.join([ItemAnswer(413, "", error)])
    assert whole.status == 413
    assert json.loads(whole.encoded.body) == {"error": f"{code}: why"}


@pytest.mark.parametrize("answer", [b"\xff\xd8", b'{"score": NaN}'])
def test_an_answer_that_is_no_json_fails_its_request_alone(answer: bytes) -> None:
    whole = open_v1(_raw(_told({"instances": [{}]})), 1000).join([ItemAnswer(200, "", answer)])
    assert whole.status == 500
    assert b"inference_failed: an answer is no JSON" in whole.encoded.body


def test_answers_become_predictions_in_their_order() -> None:
    exchange = open_v1(_raw(_told({"instances": [1, 2]})), LIMIT)
    answers = [
        ItemAnswer(200, "infer;dur=2.000", _told({"text": word})) for word in ("a", "\ud800 lone")
    ]
    whole = exchange.join(answers)
    assert (whole.status, whole.encoded.content_type) == (200, "application/json")
    assert json.loads(whole.encoded.body) == {
        "predictions": [{"text": "a"}, {"text": "\ud800 lone"}]
    }
    assert whole.timing == "infer;dur=2.000"


@pytest.mark.parametrize(("status", "expected"), [(422, 400), (413, 400), (500, 500), (503, 503)])
def test_a_bad_instance_fails_its_request_with_its_index(status: int, expected: int) -> None:
    exchange = open_v1(_raw(_told({"instances": [1, 2]})), LIMIT)
    error = _told({"error": {"code": "field_invalid", "message": "why"}})
    whole = exchange.join([ItemAnswer(200, "", b"{}"), ItemAnswer(status, "", error)])
    assert whole.status == expected
    assert json.loads(whole.encoded.body) == {"error": "instance 1: field_invalid: why"}
