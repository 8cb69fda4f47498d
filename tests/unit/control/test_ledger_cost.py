"""What a read of the ledger costs, in SQLite's own steps: as many as its model has rows."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.domain import State
from vlserve.control.gateway.routing import full_weight
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Manifest

READS: dict[str, Callable[[Ledger], object]] = {
    "model": lambda ledger: ledger.model("tagger"),
    "models": lambda ledger: ledger.models(),
    "versions": lambda ledger: ledger.versions("tagger"),
    "one version": lambda ledger: ledger.version("tagger", 1),
    "newest events": lambda ledger: ledger.events("tagger", newest=5),
    "who registered": lambda ledger: ledger.registered_by("tagger", 1),
    "latest rollout": lambda ledger: RolloutStore(ledger).latest("tagger"),
    "candidates that stay": lambda ledger: RolloutStore(ledger).kept(),
}


class Steps:
    """Counts the steps of SQLite's virtual machine on all connections that are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        connect = sqlite3.connect

        def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_progress_handler(self._step, 1)
            return connection

        monkeypatch.setattr(sqlite3, "connect", counted)

    def _step(self) -> None:
        self.count += 1

    def of(self, read: Callable[[], object]) -> int:
        """Return the steps of a read that was done before: manifests are read once."""
        read()
        before = self.count
        read()
        return self.count - before


@pytest.fixture(scope="module")
def manifest(pack: Callable[..., Path]) -> Manifest:
    return verify_archive(pack())


def release_in_turn(ledger: Ledger, manifest: Manifest, count: int) -> None:
    """Release ``count`` versions after one another, each of which is unloaded by the next one."""
    model = manifest.model
    with ledger.transaction():
        for number in range(1, count + 1):
            own = manifest.model_copy(update={"version": number})
            path = ledger.store / model / f"{model}-{number}.mar"
            sha256 = hashlib.sha256(str(path).encode()).hexdigest()
            ledger.enter(own, path, sha256, State.READY, "torchserve")
            ledger.release(model, number, full_weight(number))
            if number > 1:
                for state in (State.DRAINING, State.RETIRED):
                    ledger.move(model, number - 1, state, str(state))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_costs_what_the_rows_of_its_model_cost(
    tmp_path: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Ledger], object],
) -> None:
    """Not their square, which was 165 ms for 244 versions, several times a second."""
    steps = Steps(monkeypatch)
    counts = {}
    for versions in (10, 40):
        with Ledger(tmp_path / str(versions)) as ledger:
            release_in_turn(ledger, manifest, versions)
            counts[versions] = steps.of(lambda: read(ledger))
    assert 0 < counts[40] <= 5 * counts[10], counts


@pytest.mark.parametrize("read", [name for name in READS if name != "models"])
def test_the_rows_of_other_models_cost_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    steps = Steps(monkeypatch)
    with Ledger(tmp_path) as ledger:
        release_in_turn(ledger, manifest, 10)
        alone = steps.of(lambda: READS[read](ledger))
        release_in_turn(ledger, manifest.model_copy(update={"model": "other"}), 40)
        assert steps.of(lambda: READS[read](ledger)) <= alone + 10
