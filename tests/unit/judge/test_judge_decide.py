import json

import pytest

from vlserve.control.judge import (
    Action,
    Batch,
    JudgeState,
    ShadowPair,
    Standing,
    Verdict,
    decide,
    next_step,
    observe,
)

WELL = Standing(elapsed_s=90, stable_healthy=True, candidate_healthy=True)


def pairs(count: int, agreements: int, distance: float = 0.05) -> list[ShadowPair]:
    return [ShadowPair(place < agreements, distance) for place in range(count)]


def test_no_evidence_means_hold(policy):
    decision = decide(JudgeState.start(policy), WELL)
    assert decision.action is Action.HOLD
    assert "requests to the candidate: 0 of 400" in decision.reason
    assert {gate.verdict for gate in decision.gates} == {Verdict.WAITING}


def test_enough_good_evidence_and_the_hold_over_means_advance(good_state):
    decision = decide(good_state, WELL)
    assert (decision.action, decision.weight, decision.next_weight) == (Action.ADVANCE, 5, 50)


def test_the_hold_is_kept(good_state):
    decision = decide(good_state, Standing(59, True, True))
    assert decision.action is Action.HOLD
    assert "held for 59 of 60 s" in decision.reason


def test_each_step_needs_evidence_of_its_own(good_state):
    decision = decide(next_step(good_state), WELL)
    assert decision.action is Action.HOLD
    assert "requests to the candidate: 0 of 400" in decision.reason


def test_evidence_that_one_gate_misses_is_waited_for(policy, traffic):
    outcomes = [
        type(outcome)(outcome.candidate, outcome.failed, outcome.latency_ms)
        for outcome in traffic(12_000, 5)
    ]
    state = observe(JudgeState.start(policy), Batch(outcomes))
    decision = decide(state, WELL)
    assert decision.action is Action.HOLD
    assert decision.reason == "tags waits for answers with tags of the candidate: 0 of 400"
    state = observe(JudgeState.start(policy, has_tags=False), Batch(outcomes))
    assert decide(state, WELL).action is Action.ADVANCE


def test_a_candidate_that_fails_only_at_full_weight_is_rolled_back(policy, traffic, good_state):
    last = next_step(observe(next_step(good_state), Batch(traffic(1_000, 50))))
    assert decide(last, WELL).action is Action.HOLD
    well = observe(last, Batch(traffic(1_000, 100)))
    assert decide(well, WELL).action is Action.ADVANCE
    decision = decide(observe(last, Batch(traffic(1_000, 100, fails=0.05))), WELL)
    assert decision.action is Action.ROLLBACK
    assert decision.reason.startswith("errors: candidate failed")


def test_a_failing_candidate_is_rolled_back_with_its_figures(bad_state):
    decision = decide(bad_state, WELL)
    assert decision.action is Action.ROLLBACK
    assert decision.reason.startswith("errors: candidate failed")
    errors = next(gate for gate in decision.gates if gate.gate == "errors")
    assert errors.verdict is Verdict.ALARM
    assert errors.peak_e_value >= errors.threshold == 80
    assert errors.figures["candidate_failed"] > 10


def test_an_alarm_stands_though_the_candidate_recovers(policy):
    state = observe(JudgeState.start(policy, shadow=True), Batch(pairs=pairs(100, 40)))
    state = observe(state, Batch(pairs=pairs(2000, 2000)))
    agreement = next(gate for gate in decide(state, WELL).gates if gate.gate == "agreement")
    assert agreement.e_value == 1 < agreement.threshold < agreement.peak_e_value
    assert decide(state, WELL).action is Action.ROLLBACK


def test_a_rollback_does_not_wait_for_the_hold(bad_state):
    assert decide(bad_state, Standing(0, True, True)).action is Action.ROLLBACK


@pytest.mark.parametrize("stable_healthy", [False, None])
def test_never_back_to_a_stable_that_is_not_healthy(bad_state, stable_healthy):
    decision = decide(bad_state, Standing(90, stable_healthy, True))
    assert decision.action is Action.HOLD
    assert "no rollback onto it, though errors: candidate failed" in decision.reason


def test_an_unhealthy_candidate_is_rolled_back(good_state):
    decision = decide(good_state, Standing(90, True, False))
    assert (decision.action, decision.reason) == (
        Action.ROLLBACK,
        "the candidate is not healthy",
    )


@pytest.mark.parametrize(("stable", "candidate"), [(None, True), (False, True), (True, None)])
def test_no_advance_while_a_version_is_not_known_to_be_healthy(good_state, stable, candidate):
    decision = decide(good_state, Standing(90, stable, candidate))
    assert decision.action is Action.HOLD
    assert "health" in decision.reason


def test_a_slow_candidate_is_rolled_back(policy, traffic):
    state = observe(JudgeState.start(policy), Batch(traffic(4_000, 5, slower=2.0)))
    decision = decide(state, WELL)
    assert decision.action is Action.ROLLBACK
    assert "latency_p50: candidate" in decision.reason


def test_other_answers_are_found_in_traffic(policy, traffic):
    state = observe(JudgeState.start(policy), Batch(traffic(8_000, 5, tags="cde")))
    decision = decide(state, WELL)
    assert decision.action is Action.ROLLBACK
    assert "tags: " in decision.reason


def test_a_broken_split_alone_holds_and_asks_a_person(policy, traffic):
    state = observe(JudgeState.start(policy), Batch(traffic(4_000, 10)))
    decision = decide(state, WELL)
    assert decision.action is Action.HOLD
    assert "sample_ratio: candidate drew" in decision.reason
    assert "`vlserve abort`" in decision.reason and "`vlserve promote`" in decision.reason
    later = decide(observe(state, Batch(traffic(20_000, 5))), WELL)
    assert later.action is Action.HOLD  # the alarm stands, whatever comes


def test_a_broken_split_with_another_reason_is_rolled_back(policy, traffic):
    state = observe(JudgeState.start(policy), Batch(traffic(4_000, 10)))
    assert decide(state, Standing(90, True, False)).action is Action.ROLLBACK
    bad_state = observe(state, Batch(traffic(4_000, 10, fails=0.2)))
    decision = decide(bad_state, WELL)
    assert decision.action is Action.ROLLBACK
    assert "errors: " in decision.reason and "sample_ratio: " in decision.reason


def test_a_shadow_must_agree_before_the_candidate_gets_weight(policy):
    state = JudgeState.start(policy, shadow=True)
    assert (state.weight, state.next_weight) == (0, 5)
    few = observe(state, Batch(pairs=pairs(100, 95)))
    assert "agreement waits for shadow pairs: 100 of 200" in decide(few, WELL).reason
    unsure = observe(state, Batch(pairs=pairs(300, 250)))
    assert "its lower bound, now 0.7" in decide(unsure, WELL).reason
    assert decide(unsure, WELL).action is Action.HOLD
    sure = observe(state, Batch(pairs=pairs(300, 285)))
    assert decide(sure, WELL).action is Action.ADVANCE


def test_a_shadow_that_disagrees_is_taken_back(policy):
    state = observe(JudgeState.start(policy, shadow=True), Batch(pairs=pairs(100, 40)))
    decision = decide(state, WELL)
    assert decision.action is Action.ROLLBACK
    assert "same top tag in 40 of 100 pairs, floor 0.8" in decision.reason


def test_a_shadow_whose_scores_are_far_off_is_taken_back(policy):
    state = observe(JudgeState.start(policy, shadow=True), Batch(pairs=pairs(200, 200, 0.5)))
    decision = decide(state, WELL)
    assert decision.action is Action.ROLLBACK
    assert "score_distance: mean 0.500" in decision.reason


def test_the_last_step_needs_requests_to_the_candidate_alone(good_state, traffic):
    state = next_step(observe(next_step(good_state), Batch(traffic(1_200, 50))))
    assert state.weight == 100
    assert decide(state, WELL).action is Action.HOLD
    state = observe(state, Batch(traffic(500, 100)))
    decision = decide(state, WELL)
    assert (decision.action, decision.next_weight) == (Action.ADVANCE, None)


def test_a_decision_is_json_for_the_ledger(bad_state):
    detail = decide(bad_state, WELL).detail()
    assert json.loads(json.dumps(detail, allow_nan=False))["action"] == "rollback"


def test_looking_changes_nothing(bad_state):
    before = bad_state.to_json()
    assert decide(bad_state, WELL) == decide(bad_state, WELL)
    assert bad_state.to_json() == before
