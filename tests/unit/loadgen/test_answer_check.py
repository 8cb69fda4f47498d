import json
from typing import Any

import pytest

from vlserve.loadgen.answer_check import (
    RequestOutcome,
    SentRequest,
    judge_prediction,
    judge_tagging,
)

SENT = SentRequest(model="tagger", version=None, request_id="r-1")
RIGHT: dict[str, Any] = {
    "model": "tagger",
    "version": 3,
    "request_id": "r-1",
    "tags": [{"tag": "美食", "score": 0.9}, {"tag": "music", "score": 0}],
}


def judge(
    answer: Any, request: SentRequest = SENT, status: int = 200, request_id: str = "r-1"
) -> RequestOutcome:
    return judge_tagging(status, request_id, json.dumps(answer).encode(), request)


def test_a_right_answer() -> None:
    assert judge(RIGHT) == RequestOutcome(version=3)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"model": "other"}, "wrong model"),
        ({"version": "3"}, "no version"),
        ({"version": True}, "no version"),
        ({"request_id": "r-2"}, "request id not echoed"),
        ({"tags": []}, "no tags"),
        ({"tags": [{"tag": "a"}]}, "no tags"),
        ({"tags": [{"tag": 1, "score": 0.5}]}, "no tags"),
        ({"tags": {"a": 0.5}}, "no tags"),
    ],
)
def test_one_thing_wrong(change: dict[str, Any], failure: str) -> None:
    assert judge(RIGHT | change).failure == failure


def test_the_header_must_echo_the_request_id() -> None:
    assert judge(RIGHT, request_id="another").failure == "request id not echoed"


def test_an_explicit_path_takes_its_own_version_alone() -> None:
    assert judge(RIGHT, SentRequest("tagger", 3, "r-1")).failure is None
    assert judge(RIGHT, SentRequest("tagger", 2, "r-1")) == RequestOutcome(3, "wrong version")


def test_an_error_is_named_by_status_and_code() -> None:
    error = {"error": {"code": "overloaded", "message": "busy"}}
    assert judge(error, status=503).failure == "HTTP 503 overloaded"
    assert judge_tagging(502, None, b"<html>", SENT).failure == "HTTP 502"
    assert judge_tagging(502, None, b'{"error": "x"}', SENT).failure == "HTTP 502"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=len)
def test_a_body_that_is_no_object(body: bytes) -> None:
    assert judge_tagging(200, "r-1", body, SENT).failure == "not a JSON object"


@pytest.mark.parametrize(
    ("status", "header", "request_id", "body", "failure"),
    [
        (200, "2", "r-1", {"version": 2, "request_id": "r-1", "caption": "a cat"}, None),
        (200, "1", "r-1", {"version": 2, "request_id": "r-1"}, "header and body name different"),
        (200, None, "r-1", {"version": 2, "request_id": "r-1"}, "header and body name different"),
        (200, "2", "r-2", {"version": 2, "request_id": "r-1"}, "request id not echoed"),
        (200, "3", "r-1", {"version": 3, "request_id": "r-1"}, "wrong version"),
        (200, "2", "r-1", ["version"], "not a JSON object"),
        (503, "2", "r-1", {"error": {"code": "overloaded"}}, "HTTP 503 overloaded"),
    ],
)
def test_answers_of_any_task(
    status: int, header: str | None, request_id: str, body: object, failure: str | None
) -> None:
    request = SentRequest("captioner", 2, "r-1")
    outcome = judge_prediction(status, header, request_id, json.dumps(body).encode(), request)
    assert (outcome.failure or "").startswith(failure or "")
    assert (outcome.failure is None) == (failure is None)
    if failure is None or status == 503:
        assert outcome.version == 2
