"""Whether other workers of the stack are at work, whichever engine and version they are of.

A worker locks one byte of the stack's file while it is at work, as many others may at the same
time. The kernel gives the lock back when the process ends, however it ends, and says whether
another process holds one: two calls a batch and one a question, with any number of workers.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUSY_FILE = "busy"
"""In the stack's state_dir."""
_LOCK = struct.Struct("hhqqi4x")
"""Linux's ``struct flock`` on 64 bits: type, whence, start, length, process id."""


class BusyWorkers:
    """One worker's lock, and its question about the others'."""

    def __init__(self, file: Path) -> None:
        """Open ``file``, which all workers of the stack share; it is made where it is not there.

        Raises:
            OSError: it cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count as busy while the body runs; on a file system without locks, not at all."""
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1)

    def others(self) -> bool:
        """Return whether another worker is at work; True where the system does not say."""
        query = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        try:
            kind, *_ = _LOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, query))
        except OSError:
            return True
        return bool(kind != fcntl.F_UNLCK)
