"""SQLite's errors of the disk, of locks and of damage, as errors of ours that say what to do."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.control.store.disk_space import free_space
from vlserve.errors import ControlError, LedgerDamaged, LedgerFull, LedgerUnwritable

_PRIMARY = 0xFF  # of an extended result code: https://www.sqlite.org/rescode.html
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_FAILED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

WAY_BACK = "`vlserve rollback` and `vlserve abort` work all the same"


@contextmanager
def translated(file: Path) -> Iterator[None]:
    """Raise what SQLite says of the ledger in ``file`` as LedgerUnwritable or LedgerDamaged; other
    errors, as of a constraint, pass."""
    try:
        yield
    except sqlite3.Error as error:
        ours = _ours(error, file)
        if ours is None:
            raise
        raise ours from error


def damaged(file: Path, why: object) -> LedgerDamaged:
    """Return the error of a ledger that cannot be read, with what to do."""
    return LedgerDamaged(
        f"the ledger {file} is damaged ({why}): what serves goes on serving; `vlserve down`, then "
        "put a backup in its place and `vlserve up`, or `vlserve up --rebuild-ledger`"
    )


def _ours(error: sqlite3.Error, file: Path) -> ControlError | None:
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code in _DAMAGED:
        return damaged(file, error)
    if code in _FAILED and not _has_room(file.parent):  # of the file that connections share
        code = sqlite3.SQLITE_FULL
    if code == sqlite3.SQLITE_FULL:
        return LedgerFull(
            f"the ledger {file} cannot be written, because its disk is full "
            f"({free_space(file.parent)}): free some; {WAY_BACK}"
        )
    if code in _LOCKED:
        return LedgerUnwritable(
            f"the ledger {file} cannot be written, because another process holds it locked: find "
            f"it with `fuser {file}` and end it; {WAY_BACK}"
        )
    if code in _REFUSED:
        return LedgerUnwritable(
            f"the ledger {file} cannot be written, because it is read-only: make it and its folder "
            f"writable; {WAY_BACK}"
        )
    if code in _FAILED:
        return LedgerUnwritable(
            f"the ledger {file} cannot be written, because its disk does not work ({error}): look "
            f"at the disk; {WAY_BACK}"
        )
    return None


def _has_room(folder: Path) -> bool:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return True
    return disk.f_bavail * disk.f_frsize > 64 * 1024
