"""The way of evidence into the state: which observations count, and for which gates."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlserve.control.judge import agreement, latency, sample_ratio, tags, two_sample
from vlserve.control.judge.evidence import Batch, Outcome, ShadowPair
from vlserve.control.judge.latency import Timed
from vlserve.control.judge.seen_callers import SeenCallers
from vlserve.control.judge.state import JudgeState
from vlserve.control.judge.two_sample import Counts
from vlserve.errors import SettingsError

BLOCK = 40
"""Outcomes that are judged together. Their number alone closes a block, never what they say."""


def observe(state: JudgeState, batch: Batch) -> JudgeState:
    """Return the state after a batch, all of which was routed at the state's weight."""
    return _observe_outcomes(_observe_pairs(state, batch.pairs), batch.outcomes)


def next_step(state: JudgeState) -> JudgeState:
    """Return the state once the next weight is in force. SettingsError after the last step."""
    if state.next_weight is None:
        raise SettingsError(f"weights {list(state.weights)}: there is no step after the last")
    return replace(
        state,
        step=state.step + 1,
        step_candidate=0,
        step_stable=0,
        open_block=(),  # a block has one weight
        seen_callers="",
        sample_ratio=sample_ratio.next_step(state.sample_ratio, state.weight),
    )


def _observe_pairs(state: JudgeState, pairs: Sequence[ShadowPair]) -> JudgeState:
    if not pairs:
        return state
    gates = state.policy.gates
    matches = sum(pair.agree for pair in pairs)
    distances = np.array([pair.score_distance for pair in pairs])
    return replace(
        state,
        agreement=agreement.settle_agreement(
            state.agreement, np.array(len(pairs)), np.array(matches), gates.agreement.floor
        ),
        score_distance=agreement.settle_score_distance(
            state.score_distance, distances, gates.score_distance.ceiling
        ),
    )


def _observe_outcomes(state: JudgeState, outcomes: Sequence[Outcome]) -> JudgeState:
    if not outcomes:
        return state
    draws, seen_callers = _first_looks(state, outcomes)
    candidate_draws, stable_draws = _by_version(draws)
    answered = [outcome for outcome in outcomes if not outcome.refused]
    first_answered = [outcome for outcome in draws if not outcome.refused]
    evidence = answered if state.policy.unit == "request" else first_answered
    candidate_count, stable_count = _by_version(evidence)
    state = replace(
        state,
        seen_callers=seen_callers,
        sample_ratio=sample_ratio.settle(
            state.sample_ratio, np.array(candidate_draws), np.array(stable_draws), state.weight
        ),
        step_candidate=state.step_candidate + candidate_count,
        step_stable=state.step_stable + stable_count,
        repeats=state.repeats + len(answered) - len(evidence),
    )
    queue = [*state.open_block, *map(_without_caller, evidence)]
    while len(queue) >= BLOCK:
        state, queue = _settle_block(state, queue[:BLOCK]), queue[BLOCK:]
    return replace(state, open_block=tuple(queue))


def _first_looks(state: JudgeState, outcomes: Sequence[Outcome]) -> tuple[list[Outcome], str]:
    """Return the outcomes that are independent draws, and the table of callers after them.

    An empty key is none. Where one version has all the weight, nothing is drawn and no caller is
    counted.
    """
    if not state.compares:
        return list(outcomes), state.seen_callers
    drawn_steps = [step for step, weight in enumerate(state.weights) if 0 < weight < 100]
    turn, turns = drawn_steps.index(state.step), len(drawn_steps)
    callers = SeenCallers(state.seen_callers, state.salt)
    draws = [
        outcome
        for outcome in outcomes
        if not outcome.caller or callers.is_first_request(outcome.caller, turn, turns)
    ]
    return draws, callers.text


def _without_caller(outcome: Outcome) -> Outcome:
    return outcome if outcome.caller is None else replace(outcome, caller=None)


def _by_version(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    candidate = sum(outcome.candidate for outcome in outcomes)
    return candidate, len(outcomes) - candidate


def _settle_block(state: JudgeState, block: Sequence[Outcome]) -> JudgeState:
    gates = state.policy.gates
    candidate = np.array([outcome.candidate for outcome in block])
    failures = np.array([outcome.failed for outcome in block])
    latency_ms = np.array([outcome.latency_ms for outcome in block])
    # The items of one request are no draws of their own: one stands for all, as for a caller.
    most = None if state.policy.unit == "request" else 1
    answers = [
        (outcome.candidate, tag)
        for outcome in block
        if not outcome.failed
        for tag in outcome.tags[:most]
    ]
    settle_errors = two_sample.settle_alone if state.weight == 100 else two_sample.settle
    return replace(
        state,
        errors=settle_errors(
            state.errors,
            Counts.of(candidate, ~candidate, failures),
            gates.errors.margin,
        ),
        latency=latency.settle(
            state.latency,
            Timed(latency_ms, candidate & ~failures, ~candidate & ~failures),
            gates.latency_p50.margin,
            gates.latency_p99.margin,
        ),
        tags=tags.tally(
            state.tags,
            candidate=[tag for is_candidate, tag in answers if is_candidate],
            stable=[tag for is_candidate, tag in answers if not is_candidate],
            margin=gates.tags.margin,
        ),
    )
