from dataclasses import replace

import numpy as np
import pytest

from vlserve.control.judge import (
    Batch,
    EvidenceInvalid,
    JudgeState,
    Outcome,
    Policy,
    ShadowPair,
    next_step,
    observe,
)
from vlserve.control.judge.observation import BLOCK
from vlserve.errors import SettingsError


def pairs(count: int, agree: bool = True) -> list[ShadowPair]:
    return [ShadowPair(agree, 0.05)] * count


def by_caller(candidate: bool, caller: str | None, count: int = 1) -> list[Outcome]:
    return [Outcome(candidate, False, 20.0, caller)] * count


def test_a_restart_goes_on_exactly_where_the_state_stood(policy, traffic):
    first, second = traffic(333, 5), traffic(333, 5)
    state = observe(JudgeState.start(policy), Batch(first, pairs(3)))
    copy = JudgeState.from_json(state.to_json())
    assert copy.to_json() == state.to_json()
    assert observe(copy, Batch(second)).to_json() == observe(state, Batch(second)).to_json()


def test_how_traffic_is_cut_into_batches_makes_no_difference(policy, traffic):
    outcomes = traffic(500, 5)
    outcomes = [replace(o, caller=str(i % 90)) for i, o in enumerate(outcomes)]
    whole = observe(JudgeState.start(policy), Batch(outcomes))
    state = JudgeState.start(policy)
    for cut in range(0, 500, 7):
        state = observe(state, Batch(outcomes[cut : cut + 7]))
    assert state.errors.purses == pytest.approx(whole.errors.purses)
    assert state.step_stable == whole.step_stable
    assert state.seen_callers == whole.seen_callers
    assert len(state.open_block) == len(whole.open_block) < BLOCK


def test_an_empty_batch_changes_nothing(policy):
    state = JudgeState.start(policy)
    assert observe(state, Batch()) is state


def test_the_state_stays_small_however_long_the_release(policy, traffic):
    state, sizes = JudgeState.start(policy), []
    for _ in range(2):
        for round_ in range(15):
            outcomes = [replace(o, caller=f"{round_} {i}") for i, o in enumerate(traffic(200, 5))]
            state = observe(state, Batch(outcomes, pairs(200)))
        sizes.append(len(state.to_json()))
    assert max(sizes) < 40_000
    assert sizes[1] < 1.3 * sizes[0]


def test_a_caller_counts_once(policy):
    one_step = Policy.model_validate({**policy.model_dump(), "weights": [5, 100]})
    state = observe(JudgeState.start(one_step), Batch(by_caller(True, "anna", 50)))
    assert (state.step_candidate, state.repeats) == (1, 49)
    assert state.sample_ratio.candidate == 1


def test_each_request_of_a_caller_counts_if_the_policy_says_so_but_not_as_a_draw(policy):
    per_request = policy.model_copy(update={"unit": "request"})
    state = observe(JudgeState.start(per_request), Batch(by_caller(True, "anna", 50)))
    assert (state.step_candidate, state.repeats) == (50, 0)
    assert state.sample_ratio.candidate <= 1


@pytest.mark.parametrize("no_key", [None, ""])
def test_requests_without_a_key_are_draws_of_their_own(policy, no_key):
    state = observe(JudgeState.start(policy), Batch(by_caller(True, no_key, 50)))
    assert state.step_candidate == state.sample_ratio.candidate == 50


def test_callers_stay_fresh_while_only_a_shadow_runs(policy):
    state = observe(JudgeState.start(policy, shadow=True), Batch(by_caller(False, "anna", 3)))
    assert state.step_stable == 3
    assert state.seen_callers == ""


def test_a_step_begins_with_no_evidence_of_its_own_but_keeps_the_release_s(policy, traffic):
    state = next_step(observe(JudgeState.start(policy), Batch(traffic(400, 5))))
    assert (state.weight, state.next_weight) == (50, 100)
    assert state.step_candidate == state.step_stable == state.sample_ratio.stable == 0
    assert state.errors.stable > 300


def test_there_is_no_step_after_the_last(policy):
    with pytest.raises(SettingsError, match="after the last"):
        next_step(next_step(next_step(JudgeState.start(policy))))


def test_a_release_straight_to_100_is_not_judged():
    with pytest.raises(SettingsError, match="--now"):
        JudgeState.start(Policy(weights=(100,)))


@pytest.mark.parametrize("latency_ms", [-1.0, float("nan"), float("inf")])
def test_an_impossible_latency_is_refused(latency_ms):
    with pytest.raises(EvidenceInvalid, match="latency_ms"):
        Outcome(True, False, latency_ms)


@pytest.mark.parametrize("distance", [-0.1, 1.1, float("nan")])
def test_an_impossible_score_distance_is_refused(distance):
    with pytest.raises(EvidenceInvalid, match="score_distance"):
        ShadowPair(True, distance)


def test_failed_requests_are_no_evidence_of_speed(policy):
    slow_failures = [Outcome(i % 2 == 0, True, 9000.0) for i in range(BLOCK)]
    state = observe(JudgeState.start(policy), Batch(slow_failures))
    assert state.errors.candidate_hits == BLOCK / 2
    assert np.sum(state.latency.stable) == np.sum(state.latency.candidate) == 0


@pytest.mark.parametrize(("unit", "count"), [("caller", BLOCK), ("request", 3 * BLOCK)])
def test_items_of_one_request_are_draws_of_their_own_only_where_every_request_is(
    policy: Policy, unit: str, count: int
) -> None:
    state = JudgeState.start(policy.model_copy(update={"unit": unit}))
    outcomes = [Outcome(True, False, 20.0, tag="a", other_tags=("b", "c"))] * BLOCK
    assert observe(state, Batch(outcomes)).tags.candidate.sum() == count


@pytest.mark.parametrize("unit", ["caller", "request"])
def test_a_request_that_was_refused_is_no_repeat(policy, unit):
    chosen = policy.model_copy(update={"unit": unit})
    refused = [replace(outcome, refused=True) for outcome in by_caller(True, "anna", 7)]
    state = observe(JudgeState.start(chosen), Batch(refused))
    assert (state.step_candidate, state.repeats) == (0, 0)
