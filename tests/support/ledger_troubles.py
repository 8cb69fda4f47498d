"""A ledger that takes no change, and what stands in its file."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

from vlserve.control.assembly import Control
from vlserve.control.store.database import LEDGER
from vlserve.errors import LedgerFull

Trouble = Callable[[Control], AbstractContextManager[None]]


@contextmanager
def locked(control: Control) -> Iterator[None]:
    """Hold the ledger locked, as another process would."""
    with closing(
        sqlite3.connect(control.ledger.store / LEDGER, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def read_only(control: Control) -> Iterator[None]:
    """Refuse every change of the ledger."""
    database = control.ledger.database
    database.execute("PRAGMA query_only = ON")
    yield
    database.query("PRAGMA query_only = OFF")


@contextmanager
def no_page_left(control: Control) -> Iterator[None]:
    """Let the ledger's file grow no further."""
    database = control.ledger.database
    pages = database.query("PRAGMA page_count")[0][0]
    with database.transaction():  # the free pages of the file
        database.execute("CREATE TABLE filling (bytes BLOB)")
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerFull):
        while True:
            database.execute("INSERT INTO filling VALUES (zeroblob(500))")
    yield
    database.query("PRAGMA max_page_count = 1000000")


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "locked": (locked, "another process holds it locked"),
    "read-only": (read_only, "it is read-only"),
    "full": (no_page_left, "its disk is full"),
}
"""How a ledger takes no change -> what does it, and what is said of it."""


def ledger_says(control: Control) -> tuple[str, str | None]:
    """Return the weights of tagger and how its last rollout ended."""
    with closing(sqlite3.connect(control.ledger.store / LEDGER)) as raw:
        ((weights,),) = raw.execute("SELECT weights FROM models")
        rollouts = raw.execute("SELECT status FROM gray_releases ORDER BY id DESC").fetchall()
    return weights, rollouts[0][0] if rollouts else None
