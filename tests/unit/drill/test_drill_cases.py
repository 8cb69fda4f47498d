"""What a case must come to. Each way to be wrong makes it fail."""

from dataclasses import replace
from typing import Any

import pytest

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import DecisionView, GateView, RolloutView
from vlserve.drill.cases import (
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    UNDECIDED,
    CaseDecision,
    CaseResult,
    cases,
    decision_of,
    judge_cases,
)
from vlserve.loadgen.request_record import RequestRecord

RIGHT = {
    "good": (PROMOTED, ()),
    "slow": (ROLLED_BACK, ("latency_p50",)),
    "failing": (ROLLED_BACK, ("agreement", "score_distance")),
    "different": (ROLLED_BACK, ("agreement",)),
    "crashing": (ROLLED_BACK, ("latency_p99",)),
    "bad archive": (REFUSED, ()),
}


def right_decisions() -> list[CaseDecision]:
    """One case every 100 s."""
    return [
        CaseDecision(case, 2 + n, 100.0 * n, *RIGHT[case.name], why="…", after_s=20.0)
        for n, case in enumerate(cases(0.01))
    ]


def request(sent_at: float, latency_ms: float, **fields: Any) -> RequestRecord:
    """A request that was sent when it was due."""
    return RequestRecord(0.0, 0.0, latency_ms, sent_at=sent_at, **fields)


REQUESTS = [request(5.0 + 10 * n, 20, version=1) for n in range(60)]


def failed(
    decisions: list[CaseDecision], requests: list[RequestRecord] = REQUESTS, instances: int = 1
) -> list[CaseResult]:
    return [result for result in judge_cases(decisions, requests, instances) if not result.passed]


def test_six_right_decisions_pass() -> None:
    results = judge_cases(right_decisions(), REQUESTS, 1)
    assert [result.name for result in results] == list(RIGHT)
    assert all(result.passed and result.requests == 10 and result.lost == 0 for result in results)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("decision", [PROMOTED, ROLLED_BACK, REFUSED, UNDECIDED])
def test_a_wrong_decision_fails_its_case_alone(name: str, decision: str) -> None:
    if decision == RIGHT[name][0]:
        return
    decisions = [
        replace(case_decision, decision=decision)
        if case_decision.case.name == name
        else case_decision
        for case_decision in right_decisions()
    ]
    assert [result.name for result in failed(decisions)] == [name]


@pytest.mark.parametrize(
    ("name", "gate"), [("slow", "tags"), ("failing", "latency_p50"), ("different", "latency_p99")]
)
def test_the_right_decision_for_another_reason_is_wrong(name: str, gate: str) -> None:
    decisions = [
        replace(case_decision, gates=(gate,)) if case_decision.case.name == name else case_decision
        for case_decision in right_decisions()
    ]
    assert [result.name for result in failed(decisions)] == [name]


@pytest.mark.parametrize("number", range(6))
def test_a_lost_request_fails_the_case_in_which_it_began(number: int) -> None:
    requests = [*REQUESTS, request(100.0 * number + 99, 5000, failure="HTTP 503 overloaded")]
    crash = list(RIGHT).index("crashing")
    losses = judge_cases(right_decisions(), requests, 1)[number].lost
    assert losses == 1
    expected = [] if number == crash else [list(RIGHT)[number]]
    assert [result.name for result in failed(right_decisions(), requests)] == expected
    assert [result.name for result in failed(right_decisions(), requests, instances=2)] == [
        list(RIGHT)[number]
    ]


def test_a_case_that_nobody_called_proves_nothing() -> None:
    assert [result.name for result in failed(right_decisions(), REQUESTS[10:])] == ["good"]


def test_a_slow_twin_is_slow_beside_its_model() -> None:
    by_name = {case.name: case.fault for case in cases(0.5)}
    assert by_name["slow"].delay_ms == 1000
    assert {case.name: case.fault for case in cases(0.001)}["slow"].delay_ms == 40


def gate(name: str, verdict: str) -> GateView:
    return GateView(
        gate=name, verdict=verdict, summary="", waits_for="", e_value=1, peak_e_value=1,
        threshold=80, figures={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "decision"),
    [
        (RolloutStatus.PROMOTED, PROMOTED),
        (RolloutStatus.ROLLED_BACK, ROLLED_BACK),
        (RolloutStatus.ABORTED, UNDECIDED),
        (RolloutStatus.RUNNING, UNDECIDED),
        (RolloutStatus.PAUSED, UNDECIDED),
    ],
)
def test_what_a_release_says_of_itself(status: RolloutStatus, decision: str) -> None:
    gates = (gate("errors", "alarm"), gate("tags", "clear"), gate("agreement", "waiting"))
    view = RolloutView(
        id=1, model="m", candidate=2, stable=1, status=status, weights=(0, 20, 100), step=1,
        weight=20, shadow_percent=0, held_s=1, hold_s=1, started_at="", ended_at=None,
        decision=DecisionView(action="rollback", reason="it fails", gates=gates), windows=(),
    )  # fmt: skip
    assert decision_of(view) == (decision, ("errors",), "it fails")
    before = view.model_copy(update={"decision": None})
    assert decision_of(before) == (decision, (), "no decision")
