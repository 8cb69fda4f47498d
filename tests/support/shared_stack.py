"""The stack that files of tests share."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from support.running_stack import make_settings
from vlserve.control.domain import EngineKind
from vlserve.testing import RunningStack, running_stack


class SharedStack:
    """A stack that is up from the first test that asks for it until `end`."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        """``make_folder``: makes an empty folder for a stack."""
        self._make_folder = make_folder
        self._opened = ExitStack()
        self._running: RunningStack | None = None

    def on(self, kind: EngineKind) -> RunningStack:
        """Return the stack on an engine of ``kind``; one on another engine is ended."""
        if self._running is None or self._running.settings.engine.kind != kind:
            self.end()
            settings = make_settings(self._make_folder(), kind)
            self._running = self._opened.enter_context(running_stack(settings))
        return self._running

    def end(self) -> None:
        """Stop the stack if it is up. The next test that asks for it gets a new one."""
        self._running = None
        self._opened.close()
