"""The ledger's file: SQLite in model_store/, one control service at a time.

Each thread at work has a connection of its own, so that reading never waits for a change under way.
"""

import fcntl
import shutil
import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from vlserve.errors import ControlError

LEDGER = "ledger.sqlite"

MIGRATIONS = Path(__file__).parent / "migrations"
"""NNNN_what.sql: what schema version NNNN of the ledger adds to the one before."""


class Database:
    """Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open or create the database in ``folder``, and bring it to the newest schema.

        Raises:
            ControlError: another control service has it open, or a newer vlserve wrote it, in which
                case no byte of it is changed.
        """
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
        migrations = read_migrations()
        current, newest = _schema_of(self._file), len(migrations)
        if current > newest:
            raise ControlError(
                f"{self._file} has schema {current}, this vlserve reads {newest}: "
                "use the vlserve that wrote it"
            )
        self.execute("PRAGMA journal_mode = WAL")
        for version, statements in enumerate(migrations[current:], start=current + 1):
            with self._borrowed() as connection:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {statements}\n; PRAGMA user_version = {version}; COMMIT;"
                )


def read_migrations(folder: Path = MIGRATIONS) -> tuple[str, ...]:
    """Return the statements of every migration, in the order of their numbers: 1, 2, 3, …"""
    files = sorted(folder.glob("*.sql"))
    numbers = [int(file.name.partition("_")[0]) for file in files]
    assert numbers == list(range(1, len(files) + 1)), f"{folder}: migrations are {numbers}"
    return tuple(file.read_text(encoding="utf-8") for file in files)


def _schema_of(file: Path) -> int:
    """Return the schema version of the ledger in ``file``; 0 where there is none.

    The files stay as they are: even a connection that only reads leaves a -wal and a -shm beside a
    ledger, and ends by emptying them. So a ledger is read as one that nobody changes, and if a
    control service was killed, and left changes in a -wal, a copy of both is.
    """
    if not file.exists():
        return 0
    log = file.with_name(f"{file.name}-wal")
    with tempfile.TemporaryDirectory(prefix="vlserve-ledger-") as scratch:
        if log.exists() and log.stat().st_size:
            file, _ = (Path(shutil.copy(each, scratch)) for each in (file, log))
            address = file.as_uri()
        else:
            address = f"{file.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            return version
