"""The tick of releases: look, decide, move; and let go of candidates that were taken back."""

import hashlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlserve.control.domain import Key, Rollout, State
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.judge import Action
from vlserve.control.lifecycle.lifecycle import Lifecycle, Operations
from vlserve.control.log_rotation import rotate
from vlserve.control.ports import Gateway
from vlserve.control.rollouts.answer_log import AnswerLog
from vlserve.control.rollouts.evaluation import Conditions, Logs, evaluate, restarted
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.rollouts.steps import RolloutSteps
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.errors import VlserveError

_SAVE_EVERY_S = 5.0
_SAME_START_S = 3.0  # a start's time is known to a second or two
_SETTLE_S = 15.0
"""After a version came back: until the log has the last request that met it absent, and until it is
as warm as the one that came back before it."""
GATEWAY = "the gateway"

_FIGURE = re.compile(r"[0-9][0-9.e+-]*")

logger = logging.getLogger(__name__)


class StackHealth:
    """Knows how the versions and the processes of the stack are. Thread-safe."""

    def __init__(
        self, traffic: Traffic, gateway: Gateway, troubled: Callable[[], frozenset[Key]]
    ) -> None:
        """``troubled``: versions that could not be brought back into the engine."""
        self._traffic = traffic
        self._gateway = gateway
        self._troubled = troubled
        self._mine = uuid.uuid4().hex

    def starts(self, known: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Process -> which start of it answers; those that do not answer are left out. ``known``:
        those of before, since a start's time is never told twice to the same second."""
        starts = {"the control service": self._mine}
        began, before = self._gateway.started_at(), (known or {}).get(GATEWAY)
        if began is not None:
            same = before is not None and abs(began - float(before)) <= _SAME_START_S
            starts[GATEWAY] = str(before) if same else f"{began:.0f}"
        for instance in self._traffic.instances:
            token = hashlib.sha256(instance.token.encode()).hexdigest()
            starts[instance.name] = token[:16]
        return starts

    def healthy(self, key: Key) -> bool | None:
        """Whether some instance has workers for the version; None while that is not known: the
        engine does not answer, or the version's workers are coming up."""
        held = self._traffic.held
        if any(holds[key].workers_ready > 0 for holds in held.values() if key in holds):
            return True
        return False if key in self._troubled() else None

    def restoring(self, *keys: Key) -> bool | None:
        """Whether an instance is still to get one of these versions back; None while the engine
        does not answer."""
        if not self._traffic.held:
            return None
        return any(key in instance.lacks for instance in self._traffic.instances for key in keys)


class RolloutLoop:
    """One thread; `lock` is held while a release is looked at or moved."""

    def __init__(
        self,
        ledger: Ledger,
        records: RolloutStore,
        steps: RolloutSteps,
        stack_health: StackHealth,
        lifecycle: Lifecycle,
        operations: Operations,
        logs: Logs,
        tick_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        self._ledger = ledger
        self._records = records
        self._steps = steps
        self._stack_health = stack_health
        self._lifecycle = lifecycle
        self._operations = operations
        self._logs = logs
        self._tick_s = tick_s
        self._now = now
        self._answers: dict[int, AnswerLog] = {}
        self._latest: dict[int, RolloutState] = {}
        self._looked_at: dict[int, float] = {}
        self._restoring_at: dict[int, float] = {}
        self._saved_at: dict[int, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the tick come to an end, and keep what was seen."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join()
        with self.lock:
            for release in self._records.all_under_way():
                if release.id in self._latest:
                    self._records.save(release.id, progress=self._latest[release.id].to_json())

    def progress(self, release: Rollout) -> RolloutState:
        """The newest one; what the ledger keeps may be a few seconds old."""
        return self._latest.get(release.id) or RolloutState.from_json(release.progress)

    def tick(self) -> None:
        """Look once at every release that is under way."""
        under_way = self._records.all_under_way()
        for release in under_way:
            try:
                self._conduct(release.model)
            except VlserveError as error:
                logger.warning("release %s of %s: %s", release.id, release.model, error)
            except Exception:
                logger.exception("release %s of %s", release.id, release.model)
        self._forget({release.id for release in under_way})
        rotate(self._logs.answers)
        kept = self._records.kept()
        for release in kept:
            if release.keep_until is not None and release.keep_until <= self._now():
                try:
                    self._let_go(release, kept)
                except VlserveError as error:
                    logger.warning("%s %s: %s", release.model, release.candidate, error)

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            try:
                self.tick()
            except Exception:
                logger.exception("tick of releases failed")

    def _conduct(self, model: str) -> None:
        with self.lock:
            release = self._records.under_way(model)
            if release is None:  # ended while the tick was at another one
                return
            before = self.progress(release)
            after = self._look(release, before)
            if after is None:
                return
            self._latest[release.id] = after
            assert after.decision is not None
            match after.decision.action:
                case Action.ADVANCE if after.decision.next_weight is None:
                    self._steps.promote(release, after, by="judge")
                case Action.ADVANCE:
                    self._steps.advance(release, after)
                    del self._latest[release.id]
                case Action.ROLLBACK:
                    self._steps.take_back(release, after, by="judge")
                case Action.HOLD:
                    self._keep(release, before, after)

    def _look(self, release: Rollout, before: RolloutState) -> RolloutState | None:
        """None while the engine does not answer: what is logged meanwhile is read later."""
        now = self._now()
        candidate, stable = (release.model, release.candidate), (release.model, release.stable)
        restoring = self._stack_health.restoring(candidate, stable)
        if restoring is None:
            self._looked_at.pop(release.id, None)
            return None
        if restoring:
            self._restoring_at[release.id] = now
        answers = self._answers.setdefault(
            release.id, AnswerLog(self._logs.answers, release.model, before.answers)
        )
        conditions = Conditions(
            now=now,
            passed_s=max(0.0, now - self._looked_at.get(release.id, now)),
            starts=self._stack_health.starts(before.starts),
            stable_healthy=self._stack_health.healthy(stable),
            candidate_healthy=self._stack_health.healthy(candidate),
            restoring=now - self._restoring_at.get(release.id, 0.0) < _SETTLE_S,
        )
        self._looked_at[release.id] = now
        return evaluate(release, before, self._logs, answers, conditions)

    def _keep(self, release: Rollout, before: RolloutState, after: RolloutState) -> None:
        """An event where something is new. Evidence is kept every few seconds: what came after is
        read from the logs again."""
        others = restarted(before, after)
        news = _holding(before) != _holding(after)
        due = self._now() - self._saved_at.get(release.id, 0.0) > _SAVE_EVERY_S
        if not (news or others or due):
            return
        with self._ledger.transaction():
            self._records.save(release.id, progress=after.to_json())
            if others:
                self._ledger.record(
                    release.model, release.candidate, "release_resumed", restarted=list(others)
                )
            if news and after.decision is not None:
                self._ledger.record(
                    release.model, release.candidate, "held", **after.decision.detail()
                )
        self._saved_at[release.id] = self._now()

    def _let_go(self, release: Rollout, kept: Sequence[Rollout]) -> None:
        """Its candidate drains, unless it has been given something to do since."""
        key = (release.model, release.candidate)
        if key in self._operations.running():
            return
        with self._operations.on(key):
            record = self._ledger.version(*key)
            model = self._ledger.model(release.model)
            under_way = self._records.under_way(release.model)
            wanted = release.candidate in (*model.stack, *model.weights)
            wanted = wanted or (under_way is not None and under_way.candidate == release.candidate)
            wanted = wanted or any(
                (other.model, other.candidate) == key and other.id > release.id for other in kept
            )
            if record.state is State.READY and not wanted:
                self._lifecycle.start_draining(record)
            self._records.save(release.id, keep_until=None)

    def _forget(self, under_way: set[int]) -> None:
        remembered: list[dict[int, Any]] = [self._answers, self._latest, self._looked_at]
        for of_releases in (*remembered, self._restoring_at, self._saved_at):
            for release_id in set(of_releases) - under_way:
                del of_releases[release_id]


def _holding(progress: RolloutState) -> object:
    """What a release waits for, without the figures, which change at every look."""
    decision = progress.decision
    if decision is None:
        return None
    gates = tuple((gate.gate, gate.verdict) for gate in decision.gates)
    return decision.step, decision.action, gates, _FIGURE.sub("#", decision.reason)
