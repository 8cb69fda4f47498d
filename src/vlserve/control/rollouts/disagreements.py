"""Where two versions differ, and which of them people say is right."""

from vlserve.control import caller
from vlserve.control.domain import Mark, Right
from vlserve.control.rollouts.pair_log import DifferingPair, PairLog
from vlserve.control.store.ledger import Ledger, now
from vlserve.control.store.marks import MarkStore
from vlserve.errors import PairNotFound

WORST = 10


class Disagreements:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, log: PairLog) -> None:
        self._ledger = ledger
        self._store = MarkStore(ledger)
        self._log = log

    def newest(self, model: str) -> list[DifferingPair]:
        """Return the newest pairs of a model's shadows that differ, the newest first."""
        return self._log.newest(model)

    def worst(self, model: str, rollout: int) -> list[DifferingPair]:
        """Return the `WORST` pairs of one rollout that differ most, the worst first."""
        of_rollout = [pair for pair in self._log.newest(model) if pair.rollout == rollout]
        return sorted(of_rollout, key=lambda pair: pair.badness, reverse=True)[:WORST]

    def marks(self, model: str) -> list[Mark]:
        """Return all marks of a model, oldest first. ModelNotFound."""
        self._ledger.model(model)
        return self._store.of(model)

    def mark(
        self, model: str, request_id: str, versions: tuple[int, int], right: Right, label: str
    ) -> Mark:
        """Keep which answer of a pair is right; the mark before is replaced.

        Args:
            versions: stable and candidate.
            label: the right one where neither is; empty: not said.

        Raises:
            PairNotFound: the log has no such pair any more.
        """
        pair = next(
            (
                each
                for each in self._log.newest(model)
                if (each.request_id, each.stable, each.candidate) == (request_id, *versions)
            ),
            None,
        )
        if pair is None:
            raise PairNotFound(
                f"the log of pairs holds no answers of {model} {versions[0]} and {versions[1]} to "
                f"request {request_id!r} any more"
            )
        labels = {"stable": pair.stable_label, "candidate": pair.candidate_label, "neither": label}
        mark = Mark(model, request_id, *versions, right, labels[right], now(), caller.key())
        self._store.put(mark)
        return mark
