"""What the drill of crashes forgives, and what it does not."""

import pytest

from vlserve.drill.crash import Moments, judge
from vlserve.testing.clients import Exchange

MOMENTS = Moments(killed_s=10.0, gateway_back_s=12.0, whole_s=20.0)


def exchange(sent_s: float, failure: str | None) -> Exchange:
    return Exchange(sent_s, sent_s, sent_s + 0.1, None, 2 if failure is None else None, failure)


def breaches(
    *failures: Exchange, changes: tuple[str, ...] = (), event: str = "recovered"
) -> list[str]:
    good = [exchange(at_s, None) for at_s in (9.0, 15.0, 21.0)]
    return list(judge("gateway", MOMENTS, [*good, *failures], changes, [event]).breaches)


def test_what_an_outage_may_cost() -> None:
    failures = [exchange(11.0, "connection refused"), exchange(15.0, "HTTP 503 engine_unavailable")]
    crash = judge("gateway", MOMENTS, [exchange(9.0, None), *failures], [], ["recovered"])
    assert crash.breaches == []
    assert crash.lost == {"connection refused": 1, "HTTP 503 engine_unavailable": 1}
    assert (crash.requests, crash.lost_for_s, crash.whole_after_s) == (2, 5.1, 10.0)


@pytest.mark.parametrize(
    ("failure", "breach"),
    [
        (exchange(15.0, "wrong answer"), "1 answers wrong"),
        (exchange(15.0, "HTTP 503"), "1 answers are no clean error"),
        (exchange(15.0, "HTTP 404 model_not_found"), "1 answers are no clean error"),
        (exchange(15.0, "timeout"), "1 answers are no clean error"),
        (
            exchange(12.5, "connection refused"),
            "1 connections refused or lost while the gateway was up",
        ),
        (exchange(9.5, "HTTP 503 overloaded"), "lost before the kill"),
        (exchange(20.5, "HTTP 503 overloaded"), "lost after all was whole"),
    ],
)
def test_what_an_outage_may_not_cost(failure: Exchange, breach: str) -> None:
    assert breaches(failure) == [breach]


def test_what_an_outage_may_not_change() -> None:
    assert breaches(changes=("weights changed",)) == ["weights changed"]
    assert breaches(event="failed") == ["unexpected events: failed"]
