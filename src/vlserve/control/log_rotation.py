"""Rotation of a log that others append to: they open a new file by the old name."""

from itertools import pairwise
from pathlib import Path

LOG_BYTES = 64 * 1024 * 1024
LOGS_KEPT = 5


def renamed(log: Path, number: int) -> Path:
    """Return the ``number``-th predecessor of a log, 1 the newest."""
    return log.with_name(f"{log.name}.{number}")


def rotate(log: Path, largest: int = LOG_BYTES, count: int = LOGS_KEPT) -> bool:
    """Rename ``log`` to ``log.1``, that to ``log.2``, and so on, if it is over ``largest`` bytes;
    return whether there is no ``log`` now."""
    if not log.exists():
        return True
    if log.stat().st_size < largest:
        return False
    files = [log, *(renamed(log, number + 1) for number in range(count))]
    for newer, older in reversed(list(pairwise(files))):
        if newer.exists():
            newer.replace(older)
    return True
