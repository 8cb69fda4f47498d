"""One rollout under way, as this process follows it from tick to tick."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from vlserve.control.domain import Rollout
from vlserve.control.judge import Action, objected
from vlserve.control.lifecycle.trust import Trust
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.evaluation import Conditions, Logs, evaluate, restarted
from vlserve.control.rollouts.health import StackHealth
from vlserve.control.rollouts.pair_log import PairLog
from vlserve.control.rollouts.state import KeptState, RolloutState, StateUnreadable, read_state
from vlserve.control.rollouts.steps import RolloutSteps
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore

STATE_UNREADABLE = "state_unreadable"
"""The kind of the event that is recorded once for a rollout that cannot be judged."""

_SAVE_EVERY_S = 5.0
_SETTLE_S = 15.0
"""After a version came back: until the log has the last request that met it absent, and until it is
as warm as the one that came back before it."""

_FIGURE = re.compile(r"[0-9][0-9.e+-]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutContext:
    """What every rollout works with. ``now``: returns Unix time, s, which may step; ``clock``:
    returns s that pass whatever the system's clock does."""

    ledger: Ledger
    store: RolloutStore
    steps: RolloutSteps
    health: StackHealth
    logs: Logs
    pairs: PairLog
    trust: Trust
    now: Callable[[], float]
    clock: Callable[[], float]


class ActiveRollout:
    """Its state, which may be newer than the ledger's, and its times. Callers hold the lock of the
    rollout loop."""

    def __init__(self, rollout: Rollout, context: RolloutContext) -> None:
        self._context = context
        self._answers: AnswerLog | None = None
        self._evaluated_at: float | None = None
        self._restoring_at = -math.inf
        self._saved_at = -math.inf
        self._reported = False
        self.state: KeptState = read_state(rollout.state_json)

    def tick(self, rollout: Rollout) -> None:
        """Take in the evidence since the last tick, and do what the judge decides. ``rollout``: as
        the ledger has it now. A state that cannot be read leaves the traffic as it is."""
        if isinstance(self.state, StateUnreadable):
            self._report_once(rollout, self.state)
            return
        before = self.state
        candidate = self._context.ledger.version(rollout.model, rollout.candidate)
        objection = self._context.trust.objection(candidate)
        if objection:  # a shadow, whose users all get stable's answers
            self.state = replace(before, decision=objected(before.judge, objection))
            self._context.steps.take_back(rollout, self.state, by="trust")
            return
        after = self._evaluate(rollout, before)
        if after is None:
            return
        self.state = after
        assert after.decision is not None
        steps = self._context.steps
        match after.decision.action:
            case Action.ADVANCE if after.decision.next_weight is None:
                steps.promote(rollout, after, by="judge")
            case Action.ADVANCE:
                self.state = steps.advance(rollout, after)
            case Action.ROLLBACK:
                steps.take_back(rollout, after, by="judge")
            case Action.HOLD:
                self._save_if_due(rollout, before, after)

    def save(self, rollout: Rollout) -> None:
        """Keep the state in the ledger."""
        if isinstance(self.state, RolloutState):
            self._context.store.save_state(rollout.id, self.state.to_json())

    def _evaluate(self, rollout: Rollout, before: RolloutState) -> RolloutState | None:
        """Return the state after the evidence until now; None while the engine does not answer:
        what is logged meanwhile is read later."""
        health, logs, moment = self._context.health, self._context.logs, self._context.clock()
        candidate, stable = (rollout.model, rollout.candidate), (rollout.model, rollout.stable)
        restoring = health.restoring(candidate, stable)
        if restoring is None:
            self._evaluated_at = None
            return None
        if restoring:
            self._restoring_at = moment
        if self._answers is None:
            self._answers = AnswerLog(logs.answers, rollout.model, before.answers)
        since = moment if self._evaluated_at is None else self._evaluated_at
        conditions = Conditions(
            now=self._context.now(),
            passed_s=moment - since,
            starts=health.starts(),
            stable_healthy=health.healthy(stable),
            candidate_healthy=health.healthy(candidate),
            restoring=moment - self._restoring_at < _SETTLE_S,
        )
        self._evaluated_at = moment
        after, copies = evaluate(rollout, before, logs, self._answers, conditions)
        after = replace(after, answers=self._answers.begin_at(moment))
        ceiling = after.judge.policy.gates.score_distance.ceiling
        self._context.pairs.write(rollout, copies, ceiling)
        return after

    def _save_if_due(self, rollout: Rollout, before: RolloutState, after: RolloutState) -> None:
        """Record an event where something is new. Evidence is kept every few seconds: what came
        after is read from the logs again."""
        context = self._context
        processes = restarted(before, after)
        news = _holding(before) != _holding(after)
        due = context.clock() - self._saved_at > _SAVE_EVERY_S
        if not (news or processes or due):
            return
        key = (rollout.model, rollout.candidate)
        with context.ledger.transaction():
            self.save(rollout)
            if processes:
                context.ledger.record(*key, "release_resumed", restarted=list(processes))
            if news and after.decision is not None:
                context.ledger.record(*key, "held", **after.decision.detail())
        self._saved_at = context.clock()

    def _report_once(self, rollout: Rollout, error: StateUnreadable) -> None:
        """Record in the history that a person must decide: once, also across restarts."""
        if self._reported:
            return
        self._reported = True
        reason = unreadable(rollout, error)
        logger.error("rollout %s of %s: %s", rollout.id, rollout.model, reason)
        ledger = self._context.ledger
        recorded = any(
            event.kind == STATE_UNREADABLE and event.detail.get("rollout") == rollout.id
            for event in ledger.events(rollout.model)
        )
        if not recorded:
            key = (rollout.model, rollout.candidate)
            ledger.record(*key, STATE_UNREADABLE, rollout=rollout.id, reason=reason)


def unreadable(rollout: Rollout, error: StateUnreadable) -> str:
    """Return what has happened to a rollout whose state cannot be read, and what to do."""
    sentence = f"the kept state of the rollout cannot be read ({error})"
    if not rollout.status.under_way:
        return sentence
    return (
        f"{sentence}, so nobody judges {rollout.model} {rollout.candidate} and its weight stays: "
        f"take it back with `vlserve abort {rollout.model}`, or give it all traffic with "
        f"`vlserve promote {rollout.model}`"
    )


def _holding(state: RolloutState) -> object:
    """Return what a rollout waits for, without the figures, which change at every tick."""
    decision = state.decision
    if decision is None:
        return None
    gates = tuple((gate.gate, gate.verdict) for gate in decision.gates)
    return decision.step, decision.action, gates, _FIGURE.sub("#", decision.reason)
