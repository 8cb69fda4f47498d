"""Tells of a worker's death at once, not at the next tick: until its version is mended, each batch
that Triton hands to a dead worker is lost after a second."""

import os
import select
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from vlserve.control.domain import Key


class DeathWatch:
    """Waits for the ends of processes, in a thread of its own. Where the kernel does not allow it,
    nothing is told, and ticks find what died."""

    def __init__(self, tell: Callable[[Key], None], name: str) -> None:
        """``tell``: called with the version of each watched process that ends."""
        self._tell = tell
        self._watched: dict[int, tuple[int, Key]] = {}  # descriptor of a process -> its id
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._closing = os.eventfd(0)
        self._epoll.register(self._closing, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, key: Key, pids: Iterable[int]) -> None:
        """Watch the processes of a version; those that are watched already go on being so."""
        with self._lock:
            old_pids = {pid for pid, _ in self._watched.values()}
            for pid in set(pids) - old_pids:
                with suppress(OSError):  # it has ended, or descriptors are used up
                    self._begin(key, pid)

    def _begin(self, key: Key, pid: int) -> None:
        descriptor = os.pidfd_open(pid)
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            os.close(descriptor)
            raise
        self._watched[descriptor] = (pid, key)

    def close(self) -> None:
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        with self._lock:
            for descriptor in (*self._watched, self._closing):
                os.close(descriptor)
            self._watched.clear()
        self._epoll.close()

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._closing:
                    return
                self._tell(self._forget(descriptor))

    def _forget(self, descriptor: int) -> Key:
        with self._lock:
            self._epoll.unregister(descriptor)
            os.close(descriptor)
            return self._watched.pop(descriptor)[1]
