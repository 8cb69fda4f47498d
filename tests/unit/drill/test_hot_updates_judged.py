"""What the drill of hot updates calls lost, wrong and late."""

import math
from dataclasses import replace

import pytest

from vlserve.drill.hot_update import Step, judge, lag_ms
from vlserve.testing.clients import Exchange, Load

MOVES = (
    Step("release", 1, 0.0, 1.0),
    Step("release", 2, 10.0, 11.0),
    Step("rollback", 1, 20.0, 21.0),
    Step("release", 3, 30.0, 31.0),
)


def exchange(sent_s: float, version: int | None, request_version: int | None = None) -> Exchange:
    return Exchange(sent_s, sent_s, sent_s + 0.05, request_version, version, None)


@pytest.mark.parametrize(
    ("sent_s", "version", "lag"),
    [
        (5.0, 1, 0.0),
        (9.97, 2, 0.0),  # the release began before the answer
        (10.5, 1, 0.0),
        (10.5, 2, 0.0),
        (11.1, 2, 0.0),
        (11.1, 1, 100.0),  # began after the release had returned
        (15.0, 1, 4000.0),
        (19.0, 3, math.inf),  # never had traffic by then
        (31.2, 2, math.inf),  # lost it one move earlier
        (31.2, 1, 200.0),
    ],
)
def test_lag_is_counted_from_the_return_of_the_move(
    sent_s: float, version: int, lag: float
) -> None:
    assert lag_ms(exchange(sent_s, version), MOVES) == pytest.approx(lag)


def test_an_explicit_version_has_no_lag() -> None:
    assert lag_ms(exchange(15.0, 1, request_version=1), MOVES) == 0.0


def judged(*exchanges: Exchange, connections: int = 2) -> tuple[str, ...]:
    good = [exchange(1.5, 1), exchange(11.0, 2), exchange(21.0, 1), exchange(31.0, 3)]
    load = Load("http://gateway", "model", clients=2, rate_per_s=1.0)
    return judge(load, None, connections, MOVES, [*good, *exchanges], (0.0, 0.0)).breaches


def test_what_is_right_passes() -> None:
    assert judged() == ()


@pytest.mark.parametrize(
    ("bad", "breach"),
    [
        (replace(exchange(5.0, None), failure="HTTP 503 overloaded"), "1 requests lost"),
        (replace(exchange(5.0, 1), failure="wrong answer"), "1 answers wrong"),
        (exchange(5.0, 3), "1 answers wrong"),
        (exchange(11.2, 1), "the old version answered 200 ms after"),
    ],
)
def test_what_is_not_right_does_not_pass(bad: Exchange, breach: str) -> None:
    assert judged(bad) == (breach,)


def test_a_version_that_takes_long_to_answer_does_not_pass() -> None:
    late = [exchange(1.5, 1), exchange(11.3, 2), exchange(21.0, 1), exchange(31.0, 3)]
    load = Load("http://gateway", "model", clients=2, rate_per_s=1.0)
    result = judge(load, None, 2, MOVES, late, (0.0, 0.0))
    assert result.breaches == ("the new version first answered 350 ms after",)


def test_a_connection_that_was_not_kept_does_not_pass() -> None:
    assert judged(connections=3) == ("3 connections for 2 clients",)


@pytest.mark.parametrize(
    ("due_s", "told"),
    [
        (12.0, "no step"),
        (9.9, "release of version 2"),
        (-1.0, "release of version 1, release of version 2, rollback of version 1 and 1 more"),
    ],
)
def test_the_longest_stall_is_told_with_what_ran_then(due_s: float, told: str) -> None:
    good = [exchange(1.5, 1), exchange(11.0, 2), exchange(21.0, 1), exchange(31.0, 3)]
    answered_s = {12.0: 19.0, 9.9: 12.0, -1.0: 32.0}[due_s]
    long = Exchange(due_s, due_s, answered_s, None, 1, None)
    load = Load("http://gateway", "model", clients=2, rate_per_s=1.0)
    assert judge(load, None, 2, MOVES, [*good, long], (0.0, 0.0)).stalled_during == told
