"""The ledger's file: SQLite in model_store/, one control service at a time.

Each thread at work has a connection of its own, so that reading never waits for a change under way.
"""

import fcntl
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlserve.errors import ControlError

LEDGER = "ledger.sqlite"

_FIRST = """
CREATE TABLE models (
    model TEXT PRIMARY KEY,
    weights TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE versions (
    model TEXT NOT NULL REFERENCES models (model),
    version INTEGER NOT NULL,
    archive TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    manifest TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    was_ready INTEGER NOT NULL DEFAULT 0,
    registered_at TEXT NOT NULL,
    changed_at TEXT NOT NULL,
    PRIMARY KEY (model, version)
) STRICT;
CREATE TABLE releases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    at TEXT NOT NULL,
    rolled_back_at TEXT,
    FOREIGN KEY (model, version) REFERENCES versions (model, version)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_model ON events (model, id);
CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

_GRAY_RELEASES = """
ALTER TABLE models ADD COLUMN intended TEXT;
CREATE TABLE gray_releases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    candidate INTEGER NOT NULL,
    stable INTEGER NOT NULL,
    status TEXT NOT NULL,
    step INTEGER NOT NULL,
    shadow_percent INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    keep_until REAL,
    progress TEXT NOT NULL,
    FOREIGN KEY (model, candidate) REFERENCES versions (model, version),
    FOREIGN KEY (model, stable) REFERENCES versions (model, version)
) STRICT;
CREATE UNIQUE INDEX one_release_at_a_time ON gray_releases (model) WHERE ended_at IS NULL;
"""

_TUNING = """
ALTER TABLE versions ADD COLUMN tuning TEXT;
"""

_SCHEMAS = (_FIRST, _GRAY_RELEASES, _TUNING)
"""What each schema version adds to the one before."""


class Database:
    """Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open or create the database in ``folder``; ControlError when another control service has
        it open, or a newer vlserve wrote it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / LEDGER
        self._owner = (folder / f"{LEDGER}.lock").open("w")
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._owner.close()
            raise ControlError(
                f"another control service uses {self._file}: stop it (`vlserve down`), "
                "or give this stack a model_store of its own"
            ) from error
        self._threads = threading.local()
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closed = True  # what is under way may end, nothing may begin
        while self._idle:
            self._idle.pop().close()
        self._owner.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are kept together, or none. Nests; the outermost one commits."""
        with self._borrowed() as connection:
            if connection.in_transaction:
                yield
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    def execute(self, statement: str, *values: object) -> None:
        """Change something; inside of a `transaction`, unless it stands alone."""
        with self._borrowed() as connection:
            connection.execute(statement, values)

    def query(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The rows that a statement finds."""
        with self._borrowed() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """The connection that this thread works with; one that is free, or a new one."""
        mine: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if mine is not None:
            yield mine
            return
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        self._threads.connection = connection
        try:
            yield connection
        finally:
            self._threads.connection = None
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise ControlError(f"{self._file} was closed: the control service stops")
        connection = sqlite3.connect(
            self._file, timeout=30, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a change that was answered is on disk
        return connection

    def _migrate(self) -> None:
        self.execute("PRAGMA journal_mode = WAL")
        found = self.query("PRAGMA user_version")[0][0]
        newest = len(_SCHEMAS)
        if found > newest:
            raise ControlError(
                f"{self._file} has schema {found}, this vlserve reads {newest}: "
                "use the vlserve that wrote it"
            )
        for version, schema in enumerate(_SCHEMAS[found:], start=found + 1):
            with self._borrowed() as connection:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;"
                )
