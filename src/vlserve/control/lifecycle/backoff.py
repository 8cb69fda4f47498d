"""When an action on a version that failed is tried again, and why it failed."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlserve.control.domain import Key
from vlserve.errors import ArchiveLost, LoadFailed, SignatureRefused

_MAX_DELAY_S = 60.0
_MAX_EXPONENT = 10  # 2 to the number of failures passes a float's range at the 1024th
_TRIES_TO_BELIEVE = 2
"""A load that failed once may have met a busy machine."""

_Stamp = tuple[int, int, int] | None
"""What tells whether a file is another one than before; None: there is none."""


@dataclass(frozen=True)
class _Failure:
    count: int
    due: float
    reason: str
    error: Exception
    archive: _Stamp


class Backoff:
    """A failed action is tried again after 2, 4, 8, … 60 s, and at once when its archive is another
    file than it was. Thread-safe: the tick reads while the pool writes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures: dict[Key, _Failure] = {}

    def failed(self, key: Key, error: Exception, archive: Path | None = None) -> bool:
        """Note a failure; return whether it is the first, or has another reason than the last.

        Args:
            archive: of the version, where the action read it.
        """
        stamp = _stamp(archive) if archive else None
        with self._lock:
            last = self._failures.get(key)
            count = last.count + 1 if last else 1
            due = self._now() + min(2.0 ** min(count, _MAX_EXPONENT), _MAX_DELAY_S)
            self._failures[key] = _Failure(count, due, str(error), error, stamp)
        return last is None or last.reason != str(error)

    def succeeded(self, key: Key) -> None:
        with self._lock:
            self._failures.pop(key, None)

    def unloadable(self) -> frozenset[Key]:
        """Return the versions that could not be loaded at the last try, for a reason of their own
        rather than the engine's."""
        with self._lock:
            failures = self._failures.items()
            return frozenset(key for key, each in failures if isinstance(each.error, LoadFailed))

    def reason(self, key: Key) -> str:
        """Return why the last action on a version failed; empty where none did since it is well."""
        with self._lock:
            failure = self._failures.get(key)
        return failure.reason if failure else ""

    def needs_help(self, key: Key) -> bool:
        """Return whether a version will not come back by itself, as far as its failures show."""
        with self._lock:
            failure = self._failures.get(key)
        if failure is None or not isinstance(failure.error, LoadFailed):
            return False
        return (
            isinstance(failure.error, ArchiveLost | SignatureRefused)
            or failure.count >= _TRIES_TO_BELIEVE
        )

    def waiting(self, archives: Mapping[Key, Path] | None = None) -> frozenset[Key]:
        """Return the versions whose next try is not due.

        Args:
            archives: those that may be other files by now.
        """
        with self._lock:
            now = self._now()
            failures = {key: each for key, each in self._failures.items() if each.due > now}
        files = archives or {}
        return frozenset(
            key
            for key, failure in failures.items()
            if key not in files or _stamp(files[key]) == failure.archive
        )


def _stamp(file: Path) -> _Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
