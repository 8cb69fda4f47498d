"""One look at a release: the evidence since the last one, and what the judge makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.judge import Action, Batch, Decision, JudgeState, Standing, decide, observe
from vlserve.control.rollouts import log_evidence, metric_windows
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.log_evidence import Pair
from vlserve.control.rollouts.log_reader import end_of, read_since
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.store.ledger import step_name


@dataclass(frozen=True)
class Logs:
    """Where the evidence is: what the gateway, its mirror and the handlers write."""

    requests: Path
    copies: Path
    answers: Path


@dataclass(frozen=True)
class Conditions:
    """Of one release, at one moment. ``now``: Unix time, s; ``passed_s``: since the last look.
    ``starts``: which start of each process answers, those that do not answer left out. Health is
    None where it is not known. ``restoring``: an instance lacks one of the two versions, or did
    until just now: what fails for that reason is no evidence against the one that comes back
    later."""

    now: float
    passed_s: float
    starts: Mapping[str, str]
    stable_healthy: bool | None
    candidate_healthy: bool | None
    restoring: bool = False


def begin(judge: JudgeState, logs: Logs, starts: Mapping[str, str]) -> RolloutState:
    """Nothing that is in the logs by now is evidence."""
    return RolloutState(
        judge,
        requests=end_of(logs.requests),
        copies=end_of(logs.copies),
        answers=end_of(logs.answers),
        starts=dict(starts),
    )


def evaluate(
    release: Rollout, progress: RolloutState, logs: Logs, answers: AnswerLog, conditions: Conditions
) -> RolloutState:
    """The release's progress with the evidence until now and the judge's decision."""
    progress = _gather(release, progress, logs, answers, conditions)
    if release.status is RolloutStatus.RUNNING:
        progress = replace(progress, held_s=progress.held_s + conditions.passed_s)
    standing = Standing(progress.held_s, conditions.stable_healthy, conditions.candidate_healthy)
    decision = decide(progress.judge, standing)
    restarted = _restarted(progress.starts, conditions.starts)
    policy = progress.judge.policy
    if restarted and policy.recovery == "rollback" and decision.action is not Action.ROLLBACK:
        decision = _taken_back(decision, restarted, conditions)
        if decision.action is Action.HOLD:  # remember what was restarted until stable is well
            return replace(progress, decision=decision)
    if release.status is RolloutStatus.PAUSED and decision.action is Action.ADVANCE:
        decision = replace(decision, action=Action.HOLD, reason="paused by hand")
    return replace(progress, decision=decision, starts={**progress.starts, **conditions.starts})


def restarted(before: RolloutState, after: RolloutState) -> tuple[str, ...]:
    """Which processes were found to be other ones, between two looks."""
    return _restarted(before.starts, after.starts)


def _restarted(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before if name in now and now[name] != before[name]))


def _taken_back(decision: Decision, restarted: tuple[str, ...], conditions: Conditions) -> Decision:
    reason = f"{', '.join(restarted)} was restarted, and recovery is rollback"
    if conditions.stable_healthy is not True:
        return replace(
            decision, action=Action.HOLD, reason=f"{reason}; stable is not known to be healthy"
        )
    return replace(decision, action=Action.ROLLBACK, reason=reason)


def _gather(
    release: Rollout,
    progress: RolloutState,
    logs: Logs,
    answers: AnswerLog,
    conditions: Conditions,
) -> RolloutState:
    """The logs are read in this order: an answer is logged before its request ends."""
    step = step_name(release.id, release.step)
    containing = f'"{step}"'.encode()
    versions = Pair(release.candidate, release.stable)
    lines, requests_read = read_since(logs.requests, progress.requests, containing)
    copied, copies_read = read_since(logs.copies, progress.copies, containing)
    answers.read()
    ended = (
        log_evidence.outcome(line, versions, answers.of)
        for line in lines
        if line.get("step") == step
    )
    outcomes = [outcome for outcome in ended if outcome is not None]
    copied = [line for line in copied if line.get("step") == step]
    waiting = (*progress.waiting, *log_evidence.copies(copied, conditions.now))
    pairs, still_waiting = log_evidence.join(waiting, versions, answers.of, conditions.now)
    if conditions.restoring:
        outcomes, pairs, still_waiting = [], [], []
    return replace(
        progress,
        judge=observe(progress.judge, Batch(outcomes, pairs)),
        requests=requests_read,
        copies=copies_read,
        waiting=tuple(still_waiting),
        windows=metric_windows.add(
            progress.windows,
            outcomes,
            pairs,
            now=conditions.now,
            step=release.step,
            weight=progress.judge.weight,
        ),
    )
