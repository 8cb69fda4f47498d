"""Operations on versions: one at a time on each."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vlserve.control import caller
from vlserve.control.domain import Key

_LOOK_S = 0.5  # how often one who waits is asked whether he still does


class Operations:
    """At most one operation on a version at a time. Operations on other versions never wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[Key] = set()

    @contextmanager
    def on(self, key: Key) -> Iterator[None]:
        """Wait for the operation that runs on this version, if any, then hold the version.

        Raises:
            CallerGone: the caller went away meanwhile.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: key not in self._running, _LOOK_S):
                caller.refuse_if_gone(f"{key[0]} {key[1]} was not worked on")
            self._running.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._running.discard(key)
                self._changed.notify_all()

    def running(self) -> frozenset[Key]:
        """Return the versions that an operation works on."""
        with self._changed:
            return frozenset(self._running)
