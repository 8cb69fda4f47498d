"""The archives in the model store, and whether its ledger knows of any."""

import fcntl
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from vlserve.control.domain import EngineKind, State
from vlserve.control.store.database import LEDGER, looked_at
from vlserve.control.store.sqlite_errors import translated
from vlserve.errors import ControlError, LedgerLost
from vlserve.signing.beside import remove_beside

_ARCHIVE = re.compile(r"(?P<model>[^/]+)/(?P<version>[1-9]\d*)/(?P=model)-(?P=version)\.mar")


def kept_archives(store: Path) -> list[Path]:
    """Return the files that a registration put into the store, by their names."""
    files = sorted(store.glob("*/*/*.mar"))
    return [file for file in files if _ARCHIVE.fullmatch(file.relative_to(store).as_posix())]


def remove_archive(archive: Path) -> int:
    """Remove an archive from the store, with its signature and provenance, and return how many
    bytes it had; 0 where it is gone.

    Raises:
        ControlError: it cannot be removed.
    """
    try:
        remove_beside(archive)
        size_bytes = archive.stat().st_size
        archive.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ControlError(f"{archive} cannot be removed: {error.strerror}") from error
    with suppress(OSError):  # something else lies there
        archive.parent.rmdir()
    return size_bytes


def refuse_lost_ledger(store: Path) -> None:
    """Raise what keeps the ledger of ``store`` from being opened, as far as it shows without
    writing. Nothing is said of a ledger that a control service has open.

    Raises:
        LedgerLost: it is gone or knows no version, and archives lie in the store.
        LedgerDamaged: it is no ledger.
    """
    if _is_open(store):
        return
    archives = kept_archives(store)
    if archives and not knows_versions(store):
        raise LedgerLost(
            f"{store / LEDGER} is gone or knows no version, but {len(archives)} archives lie in "
            f"{store}: put a backup of it in its place, or `vlserve up --rebuild-ledger` makes one "
            "from the archives and the gateway's last routes"
        )


def refuse_open(store: Path) -> None:
    """Raise ControlError where a control service has the ledger of ``store`` open."""
    if _is_open(store):
        raise ControlError(
            f"a control service has the ledger of {store} open: `vlserve down` first"
        )


def knows_versions(store: Path) -> bool:
    """Return whether the ledger of ``store`` is there and knows a version. LedgerDamaged."""
    file = store / LEDGER
    if not file.exists():
        return False
    with (
        translated(file),
        looked_at(file) as address,
        closing(sqlite3.connect(address, uri=True)) as connection,
    ):
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'versions'")
        if not tables.fetchall():
            return False
        return bool(connection.execute("SELECT 1 FROM versions LIMIT 1").fetchall())


def engines_in_use(store: Path) -> frozenset[EngineKind]:
    """Return the engines of the versions that the ledger of ``store`` has loaded; none where there
    is no ledger. LedgerDamaged."""
    file = store / LEDGER
    if not file.exists():
        return frozenset()
    with (
        translated(file),
        looked_at(file) as address,
        closing(sqlite3.connect(address, uri=True)) as connection,
    ):
        columns = {row[1] for row in connection.execute("PRAGMA table_info(versions)")}
        if not columns:
            return frozenset()
        engine = "engine" if "engine" in columns else "'torchserve'"  # of before there were two
        rows = connection.execute(f"SELECT DISTINCT state, {engine} FROM versions").fetchall()
    return frozenset(engine for state, engine in rows if State(state).loaded)


def _is_open(store: Path) -> bool:
    lock = store / f"{LEDGER}.lock"
    if not lock.exists():
        return False
    with lock.open(encoding="utf-8") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
