"""A ledger that earlier code wrote is migrated; one that newer code wrote is left as it is."""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.recorded import STORE
from vlserve.control.domain import RolloutStatus, State
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.store import database
from vlserve.control.store.database import LEDGER, Database, read_migrations
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.errors import ControlError

NEWEST = len(read_migrations())


@pytest.fixture
def store(project: Path, tmp_path: Path) -> Path:
    """A copy of the recorded model store, to write to."""
    return Path(shutil.copytree(project / STORE, tmp_path / "store"))


def schema_of(store: Path) -> int:
    with closing(sqlite3.connect(store / LEDGER)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_the_ledger_is_migrated_and_read(store: Path) -> None:
    with Ledger(store) as ledger:
        assert ledger.database.query("PRAGMA user_version")[0][0] == NEWEST
        states = {record.key: record.state for record in ledger.versions()}
        weights = {record.model: dict(record.weights) for record in ledger.models()}
        steps = {record.model: record.step for record in ledger.models()}
        salts = {record.model: record.salt for record in ledger.models()}
        kinds = [event.kind for event in ledger.events("tagger")]
        engines = {record.engine for record in ledger.versions()}
    assert states == {
        ("banner", 1): State.STABLE,
        ("banner", 2): State.READY,
        ("tagger", 1): State.STABLE,
        ("tagger", 2): State.CANARY,
    }
    assert engines == {"torchserve"}  # the one that served
    assert weights == {"banner": {1: 100}, "tagger": {1: 75, 2: 25}}
    assert steps == {"banner": "2/0", "tagger": "1/0"}
    assert salts == {"banner": "r2", "tagger": "r1"}  # callers stay where they are
    assert {"registered", "loaded", "released", "release_started"} <= set(kinds)
    assert schema_of(store) == NEWEST


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = schema_of(store)
    with monkeypatch.context() as patch:
        patch.setattr(database, "read_migrations", lambda: (*read_migrations(), "no statement"))
        with pytest.raises(sqlite3.OperationalError, match="syntax error"):
            Database(store)
    assert schema_of(store) == before < NEWEST
    with Ledger(store):
        pass
    assert schema_of(store) == NEWEST


def test_what_is_kept_of_rollouts_is_read(store: Path) -> None:
    with Ledger(store) as ledger:
        tagger, banner = RolloutStore(ledger).all_under_way()
    assert (tagger.model, banner.model) == ("tagger", "banner")
    for rollout in (tagger, banner):
        assert rollout.status is RolloutStatus.RUNNING
        assert (rollout.candidate, rollout.stable, rollout.step) == (2, 1, 0)
    canary, shadow = (RolloutState.from_json(record.state_json) for record in (tagger, banner))
    assert (canary.judge.weights, shadow.judge.weights) == ((25, 100), (0, 25, 100))
    assert (canary.judge.policy.hold_s, shadow.judge.policy.shadow_percent) == (3600.0, 50)
    assert RolloutState.from_json(canary.to_json()).to_json() == canary.to_json()


def newer(store: Path) -> None:
    with closing(sqlite3.connect(store / LEDGER)) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")


def newer_in_another_journal_mode(store: Path) -> None:
    with closing(sqlite3.connect(store / LEDGER)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    newer(store)


def newer_and_killed(store: Path) -> None:
    """The number is in the -wal alone."""
    with closing(sqlite3.connect(store / LEDGER)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
        shutil.copytree(store, store.with_name("killed"))
    shutil.rmtree(store)
    store.with_name("killed").rename(store)
    assert (store / f"{LEDGER}-wal").stat().st_size > 0


@pytest.mark.parametrize("write", [newer, newer_in_another_journal_mode, newer_and_killed])
def test_a_newer_ledger_is_refused_with_both_numbers_and_not_changed(
    store: Path, write: Callable[[Path], None]
) -> None:
    with Ledger(store):
        pass
    write(store)
    before = digests(store)
    with pytest.raises(ControlError, match=rf"schema {NEWEST + 1}, this vlserve reads {NEWEST}:"):
        Database(store)
    assert digests(store) == before


def test_a_ledger_that_a_killed_service_left_is_read(store: Path) -> None:
    with Ledger(store) as ledger:
        ledger.record("tagger", 2, "held", reason="in the -wal alone")
        copy = shutil.copytree(store, store.with_name("killed"))
    assert (copy / f"{LEDGER}-wal").stat().st_size > 0
    with Ledger(copy) as ledger:
        assert ledger.events("tagger")[-1].detail == {"reason": "in the -wal alone"}


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
