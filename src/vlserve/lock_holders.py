"""Files of locks (flock), and which process holds one: who waits for it wants to know whom to
end."""

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

NOBODY_KNOWS = "another process"
"""What is said of the holder where the system does not tell: other systems than Linux, or a file
system whose devices have two numbers."""

_OWNER_ALONE = 0o600
_POLL_S = 0.02
_LOCKS = Path("/proc/locks")


def open_lock(file: Path) -> TextIO:
    """Open the file of a lock, which is made where it is not there. Only its owner can: whoever
    may read a file may hold a lock on it, and keep us waiting."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, _OWNER_ALONE)
    except OSError as error:
        if error.errno != errno.EROFS or not file.exists():
            raise
        descriptor = os.open(file, os.O_RDONLY)
    with suppress(OSError):  # another user's, who let us write it; or the disk is read-only
        os.fchmod(descriptor, _OWNER_ALONE)
    return os.fdopen(descriptor, encoding="utf-8")


def try_lock(lock: TextIO) -> bool:
    """Take a lock for this process alone; return whether it is taken now. Never waits."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(lock: TextIO, timeout_s: float) -> bool:
    """Take a lock for this process alone; return whether it was taken within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not try_lock(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def holder_of(file: Path) -> str:
    """Return the process that holds a lock on ``file``, as in ``vlserve up (pid 12)``.

    Of several, that hold it shared, it is one; also one that inherited the lock and ended since.
    """
    try:
        status = file.stat()
        locks = [line.split() for line in _LOCKS.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return NOBODY_KNOWS
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
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
