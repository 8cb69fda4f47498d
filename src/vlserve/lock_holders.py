"""Which process holds a lock on a file (flock): who waits for it wants to know whom to end."""

import os
from pathlib import Path

import psutil

NOBODY_KNOWS = "another process"
"""What is said of the holder where the system does not tell: other systems than Linux, or a file
system whose devices have two numbers."""

_LOCKS = Path("/proc/locks")


def holder_of(file: Path) -> str:
    """Return the process that holds a lock on ``file``, as in ``vlserve up (pid 12)``.

    Of several, that hold it shared, it is one; also one that inherited the lock and ended since.
    """
    try:
        seen = file.stat()
        locks = [line.split() for line in _LOCKS.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return NOBODY_KNOWS
    place = f"{os.major(seen.st_dev):02x}:{os.minor(seen.st_dev):02x}:{seen.st_ino}"
    # number, FLOCK, ADVISORY, WRITE, pid, place, …; one that waits has "->" behind its number
    pids = [int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5] == place]
    return _named(pids[0]) if pids else NOBODY_KNOWS


def _named(pid: int) -> str:
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        words = []
    names = [Path(word).name for word in words[:3] if word.isprintable() and " " not in word]
    return f"{' '.join(names) or 'a process'} (pid {pid})"
