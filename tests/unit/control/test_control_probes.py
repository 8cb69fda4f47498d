"""Answers compared with what a probe expects."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine
from vlserve.control.domain import Instance
from vlserve.control.lifecycle.probes import differences, different_exchange, failed_probes
from vlserve.errors import NotReady
from vlserve.runtime.archive import verify_archive


def tags(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"tags": [{"tag": tag, "score": score} for tag, score in pairs]}


EXPECTED = tags(("cat", 0.5), ("dog", 0.4999))


@pytest.mark.parametrize(
    "answer",
    [
        EXPECTED,
        EXPECTED | {"model": "tagger", "request_id": "r"},
        tags(("cat", 0.5005), ("dog", 0.4991)),
        tags(("dog", 0.5001), ("cat", 0.4998)),
    ],
    ids=["same", "more fields", "within tolerance", "ties swapped"],
)
def test_the_same_answer(answer: dict[str, Any]) -> None:
    assert differences(EXPECTED, answer) == []


@pytest.mark.parametrize(
    ("answer", "beginning"),
    [
        ({}, "the answer has no tags"),
        (tags(("cat", 0.5), ("dog", 0.49)), "tags[1].score is 0.49, expected 0.4999"),
        (tags(("cat", 0.5), ("cow", 0.4999)), "tags[1].tag is 'cow', expected 'dog'"),
        (tags(("cat", 0.5)), "tags has 1 entries, expected 2"),
        (tags(("cat", float("nan")), ("dog", 0.4999)), "tags[0].score is nan, expected 0.5"),
        ({"tags": "cat"}, "tags is 'cat'"),
    ],
)
def test_a_different_answer_says_where(answer: dict[str, Any], beginning: str) -> None:
    (difference,) = differences(EXPECTED, answer)
    assert difference.startswith(beginning)


def test_every_wrong_field_is_listed() -> None:
    expected = {"caption": "a cat", "log_prob": -1.0, "model": "captioner", "sure": True}
    answer = {"caption": "a dog", "log_prob": -1.0002, "model": "captioner", "sure": 1}
    assert differences(expected, answer) == [
        "caption is 'a dog', expected 'a cat'",
        "sure is 1, expected True",
    ]


class SilentEngine(FakeEngine):
    """Holds a version that answers nothing, and counts how often it was asked."""

    asked = 0

    def predict(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        *,
        just_loaded: bool = False,
    ) -> Mapping[str, Any]:
        self.asked += 1
        raise NotReady("timed out")


def test_what_does_not_answer_is_asked_once(pack: Callable[..., Path]) -> None:
    manifest = verify_archive(pack())
    engine = SilentEngine(("engine-0", "engine-1"))
    probes = manifest.probes[:1] * 3
    assert failed_probes(engine, engine.instances(), manifest, probes) == ["probe 1: timed out"]
    assert engine.asked == 1


def exchange(text: str, status: int = 200, **headers: str) -> dict[str, Any]:
    return {"status": status, "headers": headers, "text": text}


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ('{"a": 0.1234567, "n": 3}', '{"a": 0.1234574, "n": 3}'),
        ("[12345.678, 1e-09]", "[12345.681, 2e-09]"),
        ("[NaN, -0.5]", "[NaN, -0.5000001]"),
        ("not JSON: 0.5", "not JSON: 0.5"),
    ],
)
def test_a_raw_answer_may_differ_in_the_last_digits_of_fractions(
    expected: str, answer: str
) -> None:
    assert different_exchange(exchange(expected), exchange(answer)) == []


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ('{"a": 0.5}', '{"a": 0.5001}'),
        ("[1000.5]", "[1000.51]"),
        ('{"n": 3}', '{"n": 3.0}'),
        ('{"n": 3000000000}', '{"n": 3000000001}'),
        ('["v 0.5000000"]', '["v 0.5000001"]'),
        ('{"a": 0.5}', '{"a":0.5}'),
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
        ("0.5 s", "0.5000001 s"),
        ("[0.5]", "[0.5, 0.5]"),
    ],
)
def test_a_raw_answer_is_otherwise_the_same_byte_for_byte(expected: str, answer: str) -> None:
    (difference,) = different_exchange(exchange(expected), exchange(answer))
    assert difference == f"text is {answer!r}, expected {expected!r}"


def test_status_and_headers_of_a_raw_answer_are_the_same() -> None:
    answer = exchange("x", 418, kind="b")
    assert different_exchange(exchange("x", kind="a"), answer) == [
        "status is 418, expected 200",
        "headers is {'kind': 'b'}, expected {'kind': 'a'}",
    ]
