"""The ledger's file: SQLite in model_store/, one control service at a time.

Each thread at work has a connection of its own, so that reading never waits for a change under way.
"""

import shutil
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from vlserve.control.store.reserve import Reserve
from vlserve.control.store.sqlite_errors import damaged, translated
from vlserve.errors import (
    ControlError,
    LedgerDamaged,
    LedgerFull,
    LedgerLost,
    LedgerUnwritable,
)
from vlserve.lock_holders import holder_of, open_lock, try_lock

LEDGER = "ledger.sqlite"

MIGRATIONS = Path(__file__).parent / "migrations"
"""NNNN_what.sql: what schema version NNNN of the ledger adds to the one before."""


LOCK_TIMEOUT_S = 2.0
"""How long a lock of another process is waited for: none of ours takes one."""
_LOOK_TIMEOUT_MS = 50
_LOOK_EVERY_S = 60.0


class Database:
    """Thread-safe. Methods raise LedgerUnwritable and LedgerDamaged."""

    def __init__(self, folder: Path) -> None:
        """Open or create the database in ``folder``, and bring it to the newest schema.

        Raises:
            ControlError: another control service has it open, or a newer vlserve wrote it, in which
                case no byte of it is changed.
        """
        self._file = folder / LEDGER
        self.reserve = Reserve(folder / f"{LEDGER}.reserve")
        self._owner = _owned(self._file)
        self._writing = threading.RLock()
        self._threads = threading.local()
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._identity: tuple[int, int] | None = None
        self._damage, self._size, self._looked_at = "", 0, time.monotonic()
        self._refused = False
        """Whether a change was refused, and none has been kept since."""
        try:
            try:
                self._migrate()
            except LedgerFull:
                self.reserve.give_up()  # who cannot open the ledger cannot go back
                self._migrate()
            self._identity = _identity(self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; a file that was deleted meanwhile is written anew."""
        if self._identity and not self._file.exists():
            self._write_anew()
        self._closed = True  # what is under way may end, nothing may begin
        while self._idle:
            self._idle.pop().close()
        self._owner.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are kept together, or none. Nests; the outermost one commits."""
        with self._writing, self._borrowed() as connection:
            if connection.in_transaction:
                yield
                return
            self._refuse_damage()
            self._run(connection, "BEGIN IMMEDIATE")
            try:
                yield
                self._run(connection, "COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    def execute(self, statement: str, *values: object) -> None:
        """Change something; inside of a `transaction`, unless it stands alone."""
        self._refuse_damage()
        with self._writing, self._borrowed() as connection:
            self._run(connection, statement, *values)

    def query(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The rows that a statement finds."""
        with self._borrowed() as connection:
            return self._run(connection, statement, *values)

    def check(self) -> None:
        """Raise what would keep a change from the ledger now. Whether its disk has room shows only
        by writing: that is tried where the last change was refused."""
        try:
            self._refuse_another_file()
            self._look_for_damage()
        except OSError as error:
            raise LedgerUnwritable(
                f"the ledger {self._file} cannot be looked at: {error.strerror or error}"
            ) from error
        if not self._writing.acquire(blocking=False):
            return  # a change is under way
        try:
            with self._borrowed() as connection:
                self._run(connection, f"PRAGMA busy_timeout = {_LOOK_TIMEOUT_MS}")
                try:
                    self._try_a_change()
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {int(1000 * LOCK_TIMEOUT_S)}")
        finally:
            self._writing.release()

    def _refuse_another_file(self) -> None:
        if not self._file.exists():
            raise LedgerLost(
                f"the ledger {self._file} was deleted while the control service had it open, which "
                "still knows all of it: `vlserve down` writes it anew, then `vlserve up`"
            )
        if _identity(self._file) != self._identity:
            raise LedgerLost(
                f"another file was put in the place of the ledger {self._file} while the control "
                "service had that open: what changes is lost at its next start; `vlserve down`, "
                "put the file there that is to count, and `vlserve up`"
            )

    def _look_for_damage(self) -> None:
        """Raise LedgerDamaged where the file was cut since, or is no ledger any more; the latter is
        looked for once a minute. Changes are refused from then on."""
        size = self._file.stat().st_size
        if size < self._size:  # SQLite never makes it smaller
            self._damage = self._damage or f"it has {size} bytes, and had {self._size}"
        self._size = max(size, self._size)
        if not self._damage and time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            with closing(self._open()) as fresh:  # what the others read is in their memory
                self._quick_check(fresh)
        self._refuse_damage()

    def _refuse_damage(self) -> None:
        if self._damage:
            raise damaged(self._file, self._damage)

    def _quick_check(self, connection: sqlite3.Connection) -> None:
        try:
            (row,) = self._run(connection, "PRAGMA quick_check(1)")
        except LedgerDamaged as error:
            self._damage = str(error.__cause__)
        else:
            self._damage = "" if row[0] == "ok" else str(row[0])
        self._refuse_damage()

    def _write_anew(self) -> None:
        copy = self._file.with_name(f"{self._file.name}.anew")
        with suppress(ControlError, OSError):  # then it is lost, as it was before
            copy.unlink(missing_ok=True)
            self.query("VACUUM INTO ?", str(copy))
            for suffix in ("-wal", "-shm"):  # of the deleted file: they do not belong to this one
                self._file.with_name(f"{self._file.name}{suffix}").unlink(missing_ok=True)
            copy.replace(self._file)

    def _try_a_change(self) -> None:
        with self.transaction():
            if self._refused:
                (row,) = self.query("PRAGMA user_version")
                self.execute(f"PRAGMA user_version = {row[0]}")
        self._refused = False

    def _run(
        self, connection: sqlite3.Connection, statement: str, *values: object
    ) -> list[sqlite3.Row]:
        try:
            with translated(self._file):
                return connection.execute(statement, values).fetchall()
        except LedgerUnwritable:
            self._refused = True
            raise

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """The connection that this thread works with; one that is free, or a new one."""
        own: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if own is not None:
            yield own
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
            if self._closed or connection.in_transaction:
                # what could not be rolled back would be read as if it had been kept
                connection.close()
            else:
                self._idle.append(connection)

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise ControlError(f"{self._file} was closed: the control service stops")
        connection = None
        try:
            with translated(self._file):
                connection = sqlite3.connect(
                    self._file,
                    timeout=LOCK_TIMEOUT_S,
                    isolation_level=None,
                    check_same_thread=False,
                )
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA synchronous = FULL")  # what was answered is on disk
                connection.execute("PRAGMA temp_store = MEMORY")  # the disk of /tmp may be full
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _migrate(self) -> None:
        migrations = read_migrations()
        with translated(self._file):
            current, newest = _schema_of(self._file), len(migrations)
        if current > newest:
            raise ControlError(
                f"{self._file} has schema {current}, this vlserve reads {newest}: "
                "use the vlserve that wrote it"
            )
        with self._borrowed() as connection:
            self._quick_check(connection)
        self.execute("PRAGMA journal_mode = WAL")
        if current == newest:
            return
        statements = "\n;\n".join(migrations[current:])
        script = f"BEGIN IMMEDIATE; {statements}\n; PRAGMA user_version = {newest}; COMMIT;"
        with self._borrowed() as connection:
            try:
                with translated(self._file):
                    connection.executescript(script)
            except BaseException:
                with suppress(sqlite3.Error):  # nothing of it is begun, or it is undone already
                    connection.execute("ROLLBACK")
                raise


def _owned(file: Path) -> TextIO:
    """Return the lock of the ledger in ``file``, whose folder is made."""
    lock_file = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(lock_file)
    except OSError as error:
        raise LedgerUnwritable(
            f"the ledger {file} cannot be opened: {error.strerror}: make {file.parent} writable"
        ) from error
    if not try_lock(lock):
        lock.close()
        raise ControlError(
            f"{holder_of(lock_file)} uses {file}: stop it, by `vlserve down` where it is "
            "another control service, or give this stack a model_store of its own"
        )
    return lock


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def read_migrations(folder: Path = MIGRATIONS) -> tuple[str, ...]:
    """Return the statements of every migration, in the order of their numbers: 1, 2, 3, …"""
    files = sorted(folder.glob("*.sql"))
    numbers = [int(file.name.partition("_")[0]) for file in files]
    assert numbers == list(range(1, len(files) + 1)), f"{folder}: migrations are {numbers}"
    return tuple(file.read_text(encoding="utf-8") for file in files)


@contextmanager
def looked_at(file: Path) -> Iterator[str]:
    """Yield the address at which the ledger in ``file`` can be read while nobody has it open.

    The files stay as they are: even a connection that only reads leaves a -wal and a -shm beside a
    ledger, and ends by emptying them. So a ledger is read as one that nobody changes, and if a
    control service was killed, and left changes in a -wal, a copy of both is.
    """
    log = file.with_name(f"{file.name}-wal")
    if not log.exists() or not log.stat().st_size:
        yield f"{file.resolve().as_uri()}?mode=ro&immutable=1"
        return
    with copied(file) as copy:
        yield copy.as_uri()


@contextmanager
def copied(file: Path) -> Iterator[Path]:
    """Yield a copy of the ledger in ``file`` as it stands, which is gone afterwards.

    Raises:
        LedgerUnwritable: There is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="vlserve-ledger-") as scratch:
        copy = Path(scratch) / LEDGER
        try:
            for ending in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(f"{file}{ending}", f"{copy}{ending}")
        except OSError as error:
            raise LedgerUnwritable(
                f"the ledger {file} cannot be looked at: a copy in {scratch} failed with "
                f"{error.strerror}: free some space there, or set TMPDIR to another folder"
            ) from error
        yield copy


def _schema_of(file: Path) -> int:
    """Return the schema version of the ledger in ``file``; 0 where there is none."""
    if not file.exists():
        return 0
    with looked_at(file) as address, closing(sqlite3.connect(address, uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version
