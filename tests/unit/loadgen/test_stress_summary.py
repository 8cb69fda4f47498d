from dataclasses import replace

import pytest

from vlserve.errors import StressError
from vlserve.loadgen.request_record import RequestRecord, parse_record
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_summary import (
    ClientUse,
    breaches,
    late_p99_ms,
    split_warm_up,
    summarise,
)

PLAN = StressPlan(url="http://127.0.0.1", model="tagger", users=1, max_p99_ms=100.0)


def steady(count: int, latency_ms: float = 10.0) -> list[RequestRecord]:
    """One request every 100 ms from the start."""
    return [RequestRecord(index / 10, 0.0, latency_ms, version=1) for index in range(count)]


def test_figures_of_a_steady_run() -> None:
    figures = summarise(steady(100), 0.0, 10.0)
    assert (figures.requests, figures.failures, figures.error_rate) == (100, {}, 0.0)
    assert (figures.p50_ms, figures.p99_ms, figures.max_ms) == (10.0, 10.0, 10.0)
    assert figures.rps == 10.0
    assert figures.longest_gap_ms == 100.0
    assert figures.versions == {1: 100}


def test_percentiles_are_those_of_the_latencies() -> None:
    records = [RequestRecord(i / 100, 0.0, float(i), version=1) for i in range(1, 101)]
    figures = summarise(records, 0.0, 1.0)
    assert figures.p50_ms == 50.5
    assert figures.p95_ms == pytest.approx(95.05)
    assert figures.p99_ms == pytest.approx(99.01)
    assert figures.max_ms == 100.0


def test_failures_are_counted_by_kind_and_leave_the_latencies() -> None:
    failures = [RequestRecord(0.05, 0.0, 9000.0, failure="timeout")] * 2
    unsent = [RequestRecord(0.06, 0.0, None, failure="not sent: 1 in flight")]
    wrong = [RequestRecord(0.07, 0.0, 5.0, version=2, failure="no tags")] * 3
    figures = summarise(steady(14) + failures + unsent + wrong, 0.0, 1.4)
    assert figures.failures == {"no tags": 3, "timeout": 2, "not sent: 1 in flight": 1}
    assert figures.error_rate == 0.3
    assert figures.max_ms == 10.0
    assert figures.versions == {1: 14, 2: 3}


@pytest.mark.parametrize(
    ("indices", "gap_ms"),
    [
        (range(0, 100), 100.0),
        ([*range(0, 40), *range(60, 100)], 2100.0),  # nothing due from 4 s to 5.9 s
        (range(30, 100), 3010.0),  # nothing at first
        (range(0, 50), 5090.0),  # nothing at the end
    ],
)
def test_the_longest_gap_has_edges(indices: list[int], gap_ms: float) -> None:
    records = [steady(100)[index] for index in indices]
    assert summarise(records, 0.0, 10.0).longest_gap_ms == pytest.approx(gap_ms)


def test_failures_do_not_hide_a_gap() -> None:
    records = [
        replace(record, failure="HTTP 503") if 40 <= index < 60 else record
        for index, record in enumerate(steady(100))
    ]
    assert summarise(records, 0.0, 10.0).longest_gap_ms == pytest.approx(2100.0)


def test_an_answer_after_the_end_lengthens_the_run() -> None:
    figures = summarise([*steady(10), RequestRecord(0.95, 0.0, 3050.0, version=1)], 0.0, 1.0)
    assert figures.rps == 2.75  # 11 answers in 4 s
    assert figures.longest_gap_ms == pytest.approx(3090.0)


def test_nothing_answered() -> None:
    figures = summarise([RequestRecord(0.0, 0.0, 1.0, failure="connection refused")], 0.0, 2.0)
    assert (figures.p99_ms, figures.rps, figures.longest_gap_ms) == (None, 0.0, 2000.0)
    assert breaches(figures, PLAN) == ("no request was answered right",)
    assert breaches(summarise([], 0.0, 2.0), PLAN) == ("no request was answered right",)


def test_the_verdict() -> None:
    assert breaches(summarise(steady(100), 0.0, 10.0), PLAN) == ()
    slow = summarise([*steady(90), *steady(10, 250.0)], 0.0, 10.0)
    assert breaches(slow, PLAN) == ("p99 250.0 ms is above 100 ms",)
    requests = [*steady(199, 250.0), RequestRecord(1.0, 0.0, 1.0, failure="HTTP 503")]
    both = breaches(summarise(requests, 0.0, 20.0), PLAN)
    assert both == ("error rate 0.500% is above 0.000%", "p99 250.0 ms is above 100 ms")
    lenient = replace(PLAN, max_error_rate=0.005, max_p99_ms=250.0)
    assert breaches(summarise(requests, 0.0, 20.0), lenient) == ()


def test_a_rate_that_was_not_sent_is_a_breach() -> None:
    """Right answers to a few requests show nothing of a rate that the client did not reach."""
    plan = StressPlan(url="http://g", model="tagger", rate_per_s=30.0, duration_s=10)
    few = breaches(summarise(steady(149), 0.0, 10.0), plan)
    assert few == ("149 requests were sent of the 300 that the rate asks for",)
    assert breaches(summarise(steady(150), 0.0, 10.0), plan) == ()


def test_the_warm_up_is_apart() -> None:
    warm_up, records = split_warm_up(steady(100), 3)
    assert [len(warm_up), len(records), records[0].due_s] == [30, 70, 3.0]


def test_a_client_at_its_own_limit_is_noticed() -> None:
    assert not ClientUse(1, 0.5, 1.0).saturated
    assert ClientUse(1, 0.95, 1.0).saturated
    late = [RequestRecord(index / 10, 80.0, 100.0, version=1) for index in range(10)]
    unsent = RequestRecord(1.0, 0.0, None, failure="not sent: 1 in flight")
    assert ClientUse(1, 0.5, late_p99_ms([*late, unsent])).saturated


def test_a_record_survives_its_line() -> None:
    records = [
        RequestRecord(0.1, 0.2, 3.5, 2, timing={"a": 1.5}),
        RequestRecord(1.0, 0.0, None, failure="not sent: 1 in flight"),
    ]
    assert [parse_record(record.line()) for record in records] == records


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rate_per_s": 5.0}, "not both"),
        ({"users": None}, "not both"),
        ({"users": 0}, "users must be above 0"),
        ({"users": None, "rate_per_s": -1.0}, "rate must be above 0"),
        ({"duration_s": 0}, "duration"),
        ({"max_error_rate": 1.5}, "error rate is a share"),
        ({"sticky_share": -0.1}, "sticky share is a share"),
    ],
)
def test_a_plan_that_contradicts_itself(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(StressError, match=words):
        replace(PLAN, **wrong)


def test_a_plan_does_not_show_its_key() -> None:
    assert "secret" not in repr(replace(PLAN, api_key="secret"))
