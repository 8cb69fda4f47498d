"""One evaluation of a rollout: the evidence since the last one, and what the judge makes of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.gateway.log_lines import read_access_line, read_shadow_line
from vlserve.control.judge import Action, Batch, Decision, JudgeState, Standing, decide, observe
from vlserve.control.rollouts import log_evidence, metric_windows
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.log_evidence import AnsweredCopy, Pair
from vlserve.control.rollouts.log_reader import Line, as_model, end_of, read_since
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.store.rows import step_name


@dataclass(frozen=True)
class Logs:
    """Where the evidence is: what the gateway, its mirror and the handlers write."""

    requests: Path
    copies: Path
    answers: Path


@dataclass(frozen=True)
class Conditions:
    """How the stack is at the moment of an evaluation.

    ``now``: Unix time, s. ``passed_s``: since the last evaluation. ``starts``: which start of each
    process answers, without those that do not answer. Health is None where it is not known.
    ``restoring``: an instance lacks one of the two versions, or did until just now: what fails for
    that reason is no evidence against the one that comes back later.
    """

    now: float
    passed_s: float
    starts: Mapping[str, str]
    stable_healthy: bool | None
    candidate_healthy: bool | None
    restoring: bool = False


def begin(judge: JudgeState, logs: Logs, starts: Mapping[str, str]) -> RolloutState:
    """Return the first state of a rollout: nothing that is in the logs by now is evidence."""
    return RolloutState(
        judge,
        requests=end_of(logs.requests),
        copies=end_of(logs.copies),
        answers=end_of(logs.answers),
        starts=dict(starts),
    )


def evaluate(
    rollout: Rollout, state: RolloutState, logs: Logs, answers: AnswerLog, conditions: Conditions
) -> tuple[RolloutState, list[AnsweredCopy]]:
    """Return the state with the evidence until now and the judge's decision, and the copies that
    are new in it."""
    state, copies = _gather(rollout, state, logs, answers, conditions)
    return _decided(rollout, state, conditions), copies


def _decided(rollout: Rollout, state: RolloutState, conditions: Conditions) -> RolloutState:
    if rollout.status is RolloutStatus.RUNNING:
        state = replace(state, held_s=state.held_s + conditions.passed_s)
    standing = Standing(state.held_s, conditions.stable_healthy, conditions.candidate_healthy)
    decision = decide(state.judge, standing)
    e_values = {gate.gate: gate.e_value for gate in decision.gates}
    state = replace(state, windows=metric_windows.with_evidence(state.windows, e_values))
    others = _restarted(state.starts, conditions.starts)
    policy = state.judge.policy
    if others and policy.recovery == "rollback" and decision.action is not Action.ROLLBACK:
        decision = _taken_back(decision, others, conditions)
        if decision.action is Action.HOLD:  # remember what was restarted until stable is well
            return replace(state, decision=decision)
    if rollout.status is RolloutStatus.PAUSED and decision.action is Action.ADVANCE:
        decision = replace(decision, action=Action.HOLD, reason="paused by hand")
    return replace(state, decision=decision, starts={**state.starts, **conditions.starts})


def restarted(before: RolloutState, after: RolloutState) -> tuple[str, ...]:
    """Return the processes that were restarted between two evaluations."""
    return _restarted(before.starts, after.starts)


def _restarted(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before if name in now and now[name] != before[name]))


def _taken_back(decision: Decision, processes: tuple[str, ...], conditions: Conditions) -> Decision:
    reason = f"{', '.join(processes)} was restarted, and recovery is rollback"
    if conditions.stable_healthy is not True:
        return replace(
            decision, action=Action.HOLD, reason=f"{reason}; stable is not known to be healthy"
        )
    return replace(decision, action=Action.ROLLBACK, reason=reason)


def _gather(
    rollout: Rollout,
    state: RolloutState,
    logs: Logs,
    answers: AnswerLog,
    conditions: Conditions,
) -> tuple[RolloutState, list[AnsweredCopy]]:
    """The logs are read in this order: an answer is logged before its request ends."""
    step = step_name(rollout.id, rollout.step)
    needle = f'"{step}"'.encode()
    versions = Pair(rollout.candidate, rollout.stable)
    lines, request_cursor = read_since(logs.requests, state.requests, needle)
    copy_lines, copy_cursor = read_since(logs.copies, state.copies, needle)
    answers.read()
    outcomes = [
        outcome
        for line in as_model(_of_step(lines, step), read_access_line, logs.requests)
        if (outcome := log_evidence.outcome(line, versions, answers)) is not None
    ]
    shadow_lines = as_model(_of_step(copy_lines, step), read_shadow_line, logs.copies)
    queue = (*state.waiting, *log_evidence.copies(shadow_lines, conditions.now))
    copies, rest = log_evidence.join(queue, versions, answers, conditions.now)
    if conditions.restoring:
        outcomes, copies, rest = [], [], []
    pairs = [log_evidence.compare(each.stable, each.candidate) for each in copies]
    state = replace(
        state,
        judge=observe(state.judge, Batch(outcomes, pairs)),
        requests=request_cursor,
        copies=copy_cursor,
        waiting=tuple(rest),
        windows=metric_windows.add(
            state.windows,
            outcomes,
            pairs,
            now=conditions.now,
            step=rollout.step,
            weight=state.judge.weight,
        ),
    )
    return state, copies


def _of_step(lines: Iterable[Line], step: str) -> Iterator[Line]:
    return (line for line in lines if line.get("step") == step)
