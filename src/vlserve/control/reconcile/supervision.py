"""Whether what started this process, supervisord, lives and goes on: nobody else starts anew what
dies."""

import os
from collections.abc import Iterator
from contextlib import suppress

import psutil

from vlserve.control.domain import Trouble

_MEND = "what dies now stays dead; `vlserve up` starts everything anew"


class Supervision:
    """Knows the parent of this process at its start: a container's never changes."""

    def __init__(self) -> None:
        self._parent = os.getppid()

    def troubles(self) -> Iterator[Trouble]:
        """Yield that the parent is gone or suspended. Implements HealthCheck."""
        if os.getppid() != self._parent:
            yield Trouble("supervisord", f"supervisord (pid {self._parent}) is gone: {_MEND}")
        elif self._is_suspended():
            yield Trouble(
                "supervisord",
                f"supervisord (pid {self._parent}) is suspended: {_MEND}, or `kill -CONT "
                f"{self._parent}` lets it go on",
            )

    def _is_suspended(self) -> bool:
        with suppress(psutil.Error):
            return bool(psutil.Process(self._parent).status() == psutil.STATUS_STOPPED)
        return False
