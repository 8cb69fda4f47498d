"""The judge for rollout tools of others: advance, hold or rollback, for two versions that somebody
else splits the traffic between.

The evidence is in the gateway's log, or in the log of what another gateway observed. It is read
once: what was judged is remembered by the question, and read again after a restart. One answer
reads `MOST_BYTES` of a log at the most; it holds while there is more.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vlserve.control.gateway.log_lines import AccessLine, is_probe, read_access_line
from vlserve.control.judge import (
    Action,
    Batch,
    Decision,
    GateResult,
    JudgeState,
    Outcome,
    Policy,
    Standing,
    decide,
    observe,
)
from vlserve.control.rollouts import log_evidence
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.evaluation import Logs
from vlserve.control.rollouts.health import StackHealth
from vlserve.control.rollouts.log_evidence import Pair
from vlserve.control.rollouts.log_reader import (
    Cursor,
    Line,
    as_model,
    begin_of,
    is_within,
    read_since,
    unix_time,
    unread_bytes,
)
from vlserve.control.rollouts.observations import (
    MAX_AHEAD_S,
    ObservationLine,
    read_observation_line,
)
from vlserve.control.rollouts.service import RolloutService
from vlserve.control.store.ledger import Ledger
from vlserve.errors import NoRelease, VerdictUnanswerable

Source = Literal["gateway", "observations"]

MOST_BYTES = 8 * 1024 * 1024
"""Of the log of requests that one answer reads, in about 2 s."""
_CHUNK_BYTES = 2 * 1024 * 1024
_BEHIND_BYTES = 1024 * 1024
"""Less than that is what was logged while an answer was made."""
MOST_ANSWERS = 4 * 1024 * 1024
"""Bytes of the log of answers that are read for one chunk of requests."""
MOST_REMEMBERED = 32
"""Questions whose evidence is remembered; that of others is read again."""
_LONGEST_REQUEST_S = 60.0
_LAST_AGO = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_UNSPLIT = 50
"""The weight of a comparison whose split is not known: any between 0 and 100 compares."""


@dataclass(frozen=True)
class Question:
    """What a verdict is asked of. Empty texts: not said. ``weight``: the candidate's share of the
    requests since ``since``, per cent, so that the split is judged too."""

    model: str
    source: Source = "gateway"
    since: str = ""
    candidate: str = ""
    stable: str = ""
    weight: int | None = None


@dataclass(frozen=True)
class VerdictReport:
    """``requests``: that were counted. ``unread_bytes``: of the log, which the next answer
    reads."""

    model: str
    source: Source
    candidate: str
    stable: str
    since: str
    weight: int | None
    verdict: Action
    reason: str
    requests: int
    unread_bytes: int
    gates: tuple[GateResult, ...]


@dataclass(frozen=True)
class _Comparison:
    """A question, resolved. ``since``: Unix time, s."""

    question: Question
    candidate: str
    stable: str
    since: float
    policy: Policy


@dataclass(frozen=True)
class _Evidence:
    state: JudgeState
    cursor: Cursor
    requests: int = 0


class Verdicts:
    """For one thread at a time."""

    def __init__(
        self,
        ledger: Ledger,
        rollouts: RolloutService,
        health: StackHealth,
        logs: Logs,
        observations: Path,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._rollouts = rollouts
        self._health = health
        self._logs = logs
        self._observations = observations
        self._now = now
        self._known: OrderedDict[_Comparison, _Evidence] = OrderedDict()

    def answer(self, question: Question) -> VerdictReport:
        """Return the verdict now.

        Raises:
            VerdictUnanswerable: the question makes no comparison.
            NoRelease: it names no candidate, and no rollout is under way.
            ModelNotFound, VersionNotFound: of versions of this stack.
        """
        if question.source == "gateway" and not question.candidate:
            rollout = self._rollouts.under_way(question.model)
            if rollout is None:
                raise NoRelease(
                    f"{question.model} is not being released: name the `candidate` of the verdict"
                )
            if not question.since:
                return self._of_rollout(question)
            question = replace(
                question, candidate=str(rollout.candidate), stable=str(rollout.stable)
            )
        return self._of_log(self._resolved(question))

    def _of_rollout(self, question: Question) -> VerdictReport:
        """Return what the rollout's own judge last decided."""
        latest = self._rollouts.latest(question.model)
        decision = latest.decision
        return VerdictReport(
            question.model,
            "gateway",
            str(latest.candidate),
            str(latest.stable),
            latest.started_at,
            latest.weight,
            verdict=decision.action if decision else Action.HOLD,
            reason=decision.reason if decision else latest.state_error,
            requests=sum(each.candidate.requests + each.stable.requests for each in latest.windows),
            unread_bytes=0,
            gates=decision.gates if decision else (),
        )

    def _resolved(self, question: Question) -> _Comparison:
        if question.source == "observations":
            if not question.since and not question.candidate:
                raise VerdictUnanswerable(
                    "lines of many rollouts may name the candidate `candidate`: say `since`, or "
                    "the name of this one's as `candidate`"
                )
            candidate, stable = question.candidate or "candidate", question.stable or "stable"
            since = 0.0
        else:
            candidate, stable, since = self._of_ledger(question)
        if candidate == stable:
            raise VerdictUnanswerable(f"candidate and stable are both {stable}")
        if question.since:
            since = read_since_text(question.since, self._now())
        return _Comparison(question, candidate, stable, since, self._rollouts.policy())

    def _of_ledger(self, question: Question) -> tuple[str, str, float]:
        """Return candidate, stable, and when the candidate got into its present state."""
        record = self._ledger.version(question.model, _number(question.candidate))
        stable = question.stable or self._ledger.model(question.model).stable
        if stable is None:
            raise VerdictUnanswerable(
                f"{question.model} has no stable version: name the one to compare with as `stable`"
            )
        other = self._ledger.version(question.model, _number(str(stable)))
        since = datetime.fromisoformat(record.changed_at).timestamp()
        return str(record.version), str(other.version), since

    def _of_log(self, comparison: _Comparison) -> VerdictReport:
        question = comparison.question
        before = self._known.pop(comparison, None) or self._begun(comparison)
        evidence, backlog = self._read_on(comparison, before)
        if not _LAST_AGO.fullmatch(question.since):  # which is another time at each question
            self._known[comparison] = evidence
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        decision = self._decided(comparison, evidence.state, backlog)
        return VerdictReport(
            question.model,
            question.source,
            comparison.candidate,
            comparison.stable,
            datetime.fromtimestamp(comparison.since, UTC).isoformat(),
            question.weight,
            verdict=decision.action,
            reason=decision.reason,
            requests=evidence.requests,
            unread_bytes=backlog,
            gates=decision.gates,
        )

    def _begun(self, comparison: _Comparison) -> _Evidence:
        weight = comparison.question.weight
        policy = comparison.policy.model_copy(update={"weights": (weight or _UNSPLIT, 100)})
        state = JudgeState.start(policy, has_split=weight is not None)
        if comparison.question.source == "gateway":
            log, since = self._logs.requests, comparison.since - _LONGEST_REQUEST_S
        else:
            log, since = self._observations, comparison.since - MAX_AHEAD_S
        return _Evidence(state, begin_of(log, since, _logged_at))

    def _read_on(self, comparison: _Comparison, evidence: _Evidence) -> tuple[_Evidence, int]:
        """Return the evidence with what the log has beyond it, and the bytes that are left."""
        own = comparison.question.source == "gateway"
        log = self._logs.requests if own else self._observations
        for _ in range(MOST_BYTES // _CHUNK_BYTES):
            lines, cursor = read_since(
                log, evidence.cursor, f'"{comparison.question.model}"'.encode(), _CHUNK_BYTES
            )
            outcomes = list(
                self._outcomes(comparison, lines) if own else _observed(comparison, lines, log)
            )
            evidence = _Evidence(
                observe(evidence.state, Batch(outcomes)),
                cursor,
                evidence.requests + len(outcomes),
            )
            backlog = unread_bytes(log, cursor)
            if backlog < _BEHIND_BYTES:
                return evidence, 0
        return evidence, backlog

    def _outcomes(self, comparison: _Comparison, lines: Iterable[Line]) -> Iterator[Outcome]:
        """Yield what the gateway's lines tell, with what the handlers answered at that time."""
        model = comparison.question.model
        requests = [
            line
            for line in as_model(lines, read_access_line, self._logs.requests)
            if line.model == model and is_within(line.at, comparison.since) and not is_probe(line)
        ]
        versions = Pair(int(comparison.candidate), int(comparison.stable))
        answers = self._answers_of(model, requests)
        for line in requests:
            outcome = log_evidence.outcome(line, versions, answers)
            if outcome is not None:
                yield outcome

    def _answers_of(self, model: str, lines: list[AccessLine]) -> AnswerLog:
        first = min((at for line in lines if (at := unix_time(line.at)) is not None), default=0.0)
        begin = begin_of(self._logs.answers, first, _logged_at)
        answers = AnswerLog(self._logs.answers, model, begin)
        if lines:
            answers.read_some(MOST_ANSWERS)
        return answers

    def _decided(self, comparison: _Comparison, state: JudgeState, backlog: int) -> Decision:
        model = comparison.question.model
        healthy: list[bool | None] = [True, True]  # of another gateway's: its owner's to watch
        if comparison.question.source == "gateway":
            healthy = [
                self._health.healthy((model, int(version)))
                for version in (comparison.stable, comparison.candidate)
            ]
        state = replace(state, has_tags=bool(state.tags.names))  # without any nobody waits for them
        elapsed_s = max(0.0, self._now() - comparison.since)
        decision = decide(state, Standing(elapsed_s, *healthy))
        if backlog and decision.action is Action.ADVANCE:
            reason = (
                f"{backlog} bytes of the log are not read yet: ask again, with a time and no span "
                "of it as `since`"
            )
            return replace(decision, action=Action.HOLD, reason=reason)
        return decision


def read_since_text(text: str, now: float) -> float:
    """Return the Unix time, s, of a time (ISO 8601; without a zone: UTC) or of a span before
    ``now``: 90s, 30m, 2h, 1d. VerdictUnanswerable: it is neither, or in the future."""
    if span := _LAST_AGO.fullmatch(text):
        return now - int(span[1]) * _UNIT_S[span[2]]
    since = unix_time(text)
    if since is None:
        raise VerdictUnanswerable(
            f"since {text[:50]!r} is neither a time (2026-01-31T09:30:00Z; + is %2B in an address) "
            "nor a span before now (90s, 30m, 2h, 1d)"
        )
    if since > now:
        raise VerdictUnanswerable(f"since {text[:50]!r} is in the future")
    return since


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text, re.ASCII):
        raise VerdictUnanswerable(
            f"{text[:50]!r} is no version of this stack: a version is a number of at least 1"
        )
    return int(text)


def _observed(comparison: _Comparison, lines: Iterable[Line], log: Path) -> Iterator[Outcome]:
    """Yield what the lines of another gateway tell of the two versions."""
    model, pair = comparison.question.model, (comparison.candidate, comparison.stable)
    for line in as_model(lines, read_observation_line, log):
        named = line.model == model and line.version in pair
        if named and is_within(line.ended_at, comparison.since):
            yield _outcome(line, comparison.candidate)


def _outcome(line: ObservationLine, candidate: str) -> Outcome:
    return Outcome(
        candidate=line.version == candidate,
        failed=line.status == 0 or line.status >= 500,
        refused=400 <= line.status < 500,
        latency_ms=line.latency_ms,
        caller=line.caller or None,
        tag=line.label,
    )


def _logged_at(raw: bytes) -> float | None:
    """Return the time of a line of any of the logs; each is nearly in this order."""
    match = _AT.search(raw)
    return unix_time(match[1].decode(errors="replace")) if match else None


_AT = re.compile(rb'"at": ?"([^"]{1,40})"')
