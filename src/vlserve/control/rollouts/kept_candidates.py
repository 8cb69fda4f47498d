"""Candidates that were taken back: they stay loaded for a while, and are then drained."""

import logging
from collections.abc import Callable, Sequence

from vlserve.control.domain import Rollout, State
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.lifecycle.operations import Operations
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.errors import VlserveError

logger = logging.getLogger(__name__)


class KeptCandidates:
    """Drains the candidates whose time is over."""

    def __init__(
        self,
        ledger: Ledger,
        store: RolloutStore,
        lifecycle: Lifecycle,
        operations: Operations,
        now: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """``now``: returns Unix time, s, which may step; ``clock``: s that pass all the same."""
        self._ledger = ledger
        self._store = store
        self._lifecycle = lifecycle
        self._operations = operations
        self._now = now
        self._clock = clock
        self._due: dict[int, float] = {}
        """Rollout -> when its candidate goes, on the clock."""

    def drain_due(self) -> None:
        """Begin to drain each candidate that has been kept long enough."""
        rollouts = self._store.kept()
        for rollout in rollouts:
            if self._is_due(rollout):
                try:
                    self._drain(rollout, rollouts)
                except VlserveError as error:
                    logger.warning("%s %s: %s", rollout.model, rollout.candidate, error)

    def _is_due(self, rollout: Rollout) -> bool:
        """Return whether a candidate has been kept long enough. The ledger's time counts once, when
        this process first sees it."""
        if rollout.keep_until is None:
            return False
        left_s = rollout.keep_until - self._now()
        return self._due.setdefault(rollout.id, self._clock() + left_s) <= self._clock()

    def _drain(self, rollout: Rollout, rollouts: Sequence[Rollout]) -> None:
        """Drain a candidate, unless it has got another task since."""
        key = (rollout.model, rollout.candidate)
        if key in self._operations.running():
            return
        with self._operations.on(key):
            record = self._ledger.version(*key)
            if record.state is State.READY and not self._is_wanted(rollout, rollouts):
                self._lifecycle.start_draining(record)
            self._store.forget_kept(rollout.id)

    def _is_wanted(self, rollout: Rollout, rollouts: Sequence[Rollout]) -> bool:
        model = self._ledger.model(rollout.model)
        under_way = self._store.under_way(rollout.model)
        return (
            rollout.candidate in (*model.stack, *model.weights)
            or (under_way is not None and under_way.candidate == rollout.candidate)
            or any(
                (later.model, later.candidate) == (rollout.model, rollout.candidate)
                and later.id > rollout.id
                for later in rollouts
            )
        )
