"""Callers who choose their sticky keys to have a release taken back. Real stack, real splits."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from support.request_bodies import GOOD_JSON
from support.running_stack import wait_until
from vlserve.control.domain import ModelRoute, RolloutStatus
from vlserve.control.wire.rollout_views import GateView
from vlserve.drill.caller_split import on_candidate
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack
from vlserve.testing.own_gateway import own_gateway
from vlserve.testing.stand_in_engine import stand_in

FEW = {"candidate": 20, "stable": 20, "units": 20, "pairs": 20}
KEYS = [f"chosen-{number}" for number in range(600)]


@pytest.fixture
def model(stack: RunningStack, new_model: str, tmp_path: Path) -> str:
    """Version 1 has the traffic, version 2 is ready and as good."""
    for version in (1, 2):
        stack.control.register(pack_echo(tmp_path, new_model, version))
    stack.control.release(new_model, 1)
    return new_model


def _who_meet_the_candidate(stack: RunningStack, model: str, keys: Sequence[str]) -> list[str]:
    candidate_keys = []
    for key in keys:
        headers = {"X-Sticky-Key": key, "Content-Type": "application/json"}
        response = stack.http.post(f"/predictions/{model}", content=GOOD_JSON, headers=headers)
        assert response.status_code == 200, response.text
        if response.headers["x-model-version"] == "2":
            candidate_keys.append(key)
    return candidate_keys


def _gates(stack: RunningStack, model: str) -> dict[str, GateView]:
    decision = stack.control.rollout(model).decision
    return {gate.gate: gate for gate in (decision.gates if decision else ())}


def _counted(stack: RunningStack, model: str) -> float:
    """Callers that the judge saw. It remembers each by a bit: now and then two have the same, and
    the second one is no new caller but a repeat."""
    gates = _gates(stack, model)
    if not gates:
        return 0.0
    repeats = gates["errors"].figures["repeats_not_counted"]
    return gates["sample_ratio"].figures["units"] + repeats


@pytest.mark.long
def test_who_guesses_the_salt_guesses_in_vain(
    stack: RunningStack, model: str, tmp_path: Path
) -> None:
    """It was `r` and the rollout's number: with it, anybody's own gateway says which keys meet the
    candidate, and 150 requests with those alone had it taken back."""
    rollout = stack.control.start_rollout(model, 2, {"weights": [50, 100], "hold_s": 3600})
    guess = ModelRoute(model, {2: 50, 1: 50}, (1, 2), f"r{rollout.id}")
    with own_gateway(tmp_path / "own") as own, stand_in("engine-0") as engine:
        own.route([guess], [engine])
        guesses = [KEYS[place] for place in on_candidate(own.url, model, KEYS[:400])]
    assert len(guesses) > 150
    candidate_keys = _who_meet_the_candidate(stack, model, guesses[:150])
    assert 40 < len(candidate_keys) < 110  # half, within more than five standard deviations
    wait_until(lambda: _counted(stack, model) == 150, timeout_s=90)
    assert _gates(stack, model)["sample_ratio"].verdict != "alarm"
    assert stack.control.abort(model).status is RolloutStatus.ABORTED


def test_who_sends_the_keys_that_met_the_candidate_gets_a_person_asked(
    stack: RunningStack, model: str
) -> None:
    """At 20 % the answers say which keys meet the candidate. Some of them count at the next step
    alone, and there all of them meet the candidate again."""
    changes = {"weights": [20, 25, 100], "hold_s": 0, "minimum": FEW}
    stack.control.start_rollout(model, 2, changes)
    stack.control.pause(model)
    candidate_keys = _who_meet_the_candidate(stack, model, KEYS)
    stack.control.resume(model)
    wait_until(lambda: stack.control.rollout(model).weight == 25)
    assert _who_meet_the_candidate(stack, model, candidate_keys) == candidate_keys
    wait_until(lambda: (gates := _gates(stack, model)) and gates["sample_ratio"].verdict == "alarm")

    rollout = stack.control.rollout(model)
    assert (rollout.status, rollout.weight) == (RolloutStatus.RUNNING, 25)
    assert rollout.decision is not None and rollout.decision.action == "hold"
    assert "sample_ratio: candidate drew" in rollout.decision.reason
    assert "`vlserve abort` takes the candidate back" in rollout.decision.reason
    holds = [event for event in stack.control.history(model) if event.kind == "held"]
    assert "callers choose their sticky keys" in holds[-1].detail["reason"]
    assert stack.control.abort(model).status is RolloutStatus.ABORTED
