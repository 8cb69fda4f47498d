"""Renames a log that has grown large; who appends to it goes on in a new file."""

from itertools import pairwise
from pathlib import Path

LOG_BYTES = 64 * 1024 * 1024
LOGS_KEPT = 5


def rotate(log: Path, largest: int = LOG_BYTES, kept: int = LOGS_KEPT) -> bool:
    """``log`` becomes ``log.1``, that ``log.2``, and so on, if it is over ``largest`` bytes;
    whether there is no ``log`` now."""
    if not log.exists():
        return True
    if log.stat().st_size < largest:
        return False
    files = [log, *(log.with_name(f"{log.name}.{number + 1}") for number in range(kept))]
    for newer, older in reversed(list(pairwise(files))):
        if newer.exists():
            newer.replace(older)
    return True
