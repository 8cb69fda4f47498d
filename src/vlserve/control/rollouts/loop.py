"""The loop over the rollouts under way: one tick a second or so."""

import logging
import threading
from contextlib import suppress

from vlserve.control.domain import Rollout
from vlserve.control.log_rotation import rotate
from vlserve.control.rollouts.active import ActiveRollout, RolloutContext
from vlserve.control.rollouts.kept_candidates import KeptCandidates
from vlserve.control.rollouts.state import KeptState, read_state
from vlserve.control.trouble_log import TroubleLog
from vlserve.errors import LedgerDamaged, LedgerUnwritable, VlserveError

logger = logging.getLogger(__name__)


class RolloutLoop:
    """One thread; `lock` is held while a rollout is evaluated or its weights change."""

    def __init__(
        self, context: RolloutContext, kept_candidates: KeptCandidates, tick_s: float
    ) -> None:
        self.lock = threading.RLock()
        self._context = context
        self._kept = kept_candidates
        self._tick_s = tick_s
        self._active: dict[int, ActiveRollout] = {}
        self._log = TroubleLog(logger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the tick come to an end, and keep the newest states."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join()
        with self.lock, suppress(LedgerUnwritable, LedgerDamaged):  # the logs are read again
            for rollout in self._context.store.all_under_way():
                if rollout.id in self._active:
                    self._active[rollout.id].save(rollout)

    def state(self, rollout: Rollout) -> KeptState:
        """Return the newest state; the ledger's may be a few seconds old."""
        active = self._active.get(rollout.id)
        return active.state if active else read_state(rollout.state_json)

    def tick(self) -> None:
        """Evaluate every rollout under way once, and rotate the log of answers."""
        try:
            self._evaluate()
        finally:
            self._rotate_answers()

    def _evaluate(self) -> None:
        under_way = self._context.store.all_under_way()
        for rollout in under_way:
            what = f"rollout {rollout.id} of {rollout.model}"
            try:
                self._tick(rollout.model)
            except VlserveError as error:
                self._log.note(what, str(error))
            except Exception:
                logger.exception(what)
            else:
                self._log.note(what, "")
        for rollout_id in self._active.keys() - {rollout.id for rollout in under_way}:
            del self._active[rollout_id]
        self._kept.drain_due()

    def _rotate_answers(self) -> None:
        try:
            rotate(self._context.logs.answers)
        except OSError as error:
            self._log.note("answers log", str(error))
        else:
            self._log.note("answers log", "")

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            try:
                self.tick()
            except VlserveError as error:
                self._log.note("tick of rollouts", str(error))
            except Exception:
                logger.exception("tick of rollouts failed")
            else:
                self._log.note("tick of rollouts", "")

    def _tick(self, model: str) -> None:
        with self.lock:
            rollout = self._context.store.under_way(model)
            if rollout is None:  # ended while the tick was at another one
                return
            if not self._context.steps.in_force(rollout).status.under_way:
                return
            if rollout.id not in self._active:
                self._active[rollout.id] = ActiveRollout(rollout, self._context)
            self._active[rollout.id].tick(rollout)
