"""A disk that fails while it is looked at is told, and stops nothing."""

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlserve.control.assembly import Control
from vlserve.control.store import database
from vlserve.control.store.database import Database
from vlserve.errors import LedgerDamaged, LedgerUnwritable

FAILS = OSError(errno.EIO, "Input/output error", "/store/tagger-1.mar")


@pytest.fixture
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise FAILS

    monkeypatch.setattr(Path, "exists", fail)


def test_health_says_what_could_not_be_looked_at(tagger: Control, failing_disk: None) -> None:
    messages = [trouble.message for trouble in tagger.service.health().troubles]
    assert "/store/tagger-1.mar: Input/output error" in messages


def test_a_ledger_that_cannot_be_looked_at_stops_no_tick(
    tagger: Control, failing_disk: None
) -> None:
    with pytest.raises(LedgerUnwritable, match="cannot be looked at: Input/output error"):
        tagger.ledger.database.check()
    tagger.reconciler.tick()


def test_an_answers_log_that_cannot_be_renamed_stops_no_tick(
    tagger: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> bool:
        raise FAILS

    monkeypatch.setattr("vlserve.control.rollouts.loop.rotate", fail)
    tagger.rollout_loop.tick()


class Breaking(sqlite3.Connection):
    """Ends no transaction once its file is damaged."""

    damaged = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if Breaking.damaged and sql in ("COMMIT", "ROLLBACK"):
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        return super().execute(sql, *values)


@pytest.fixture
def faulty_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    connect = sqlite3.connect
    monkeypatch.setattr(
        database.sqlite3, "connect", lambda *a, **options: connect(*a, factory=Breaking, **options)
    )
    ledger = Database(tmp_path)
    yield ledger
    Breaking.damaged = False
    ledger.close()


def test_what_could_not_be_rolled_back_is_not_read_as_if_kept(faulty_database: Database) -> None:
    (before,) = faulty_database.query("PRAGMA user_version")
    with pytest.raises(LedgerDamaged), faulty_database.transaction():
        faulty_database.execute(f"PRAGMA user_version = {before[0] + 1}")
        Breaking.damaged = True
    Breaking.damaged = False
    (after,) = faulty_database.query("PRAGMA user_version")
    assert after[0] == before[0]
    with faulty_database.transaction():  # one of its own, and no part of the one that failed
        faulty_database.execute(f"PRAGMA user_version = {before[0]}")
