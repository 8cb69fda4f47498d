"""Makes SIGTERM and SIGHUP end a command as Ctrl-C does: what it started, and what it wrote into
the temporary folder, goes with it. A scheduler, a container and a closed terminal stop it so.
"""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended, and that says how to go on."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
RETRY_S = 0.05


class Stopped(SystemExit):
    """A signal ends the command; the exit code is that of a process which the signal killed."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread at the first such signal; later ones are passed over, so
    that nothing breaks the cleaning up. A signal that the caller ignores (nohup) stays ignored.
    Without a signal, all is afterwards as it was."""
    with _stopped_by(SIGNALS, signal.SIG_DFL):
        yield


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Likewise at Ctrl-C, instead of KeyboardInterrupt, of which a second one would break the
    cleaning up."""
    with _stopped_by((signal.SIGINT,), signal.default_int_handler):
        yield


@contextmanager
def _stopped_by(numbers: Sequence[int], default: Any) -> Iterator[None]:
    changed = [number for number in numbers if signal.getsignal(number) is default]
    for number in changed:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in changed:
            if signal.getsignal(number) is _stop:
                signal.signal(number, default)


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_between(frame):
        retry = threading.Timer(RETRY_S, os.kill, (os.getpid(), number))
        retry.daemon = True
        retry.start()
        return
    for each in (*SIGNALS, signal.SIGINT):
        if signal.getsignal(each) is _stop:
            signal.signal(each, _pass_over)
    raise Stopped(number)


def _is_between(frame: FrameType | None) -> bool:
    """Tell whether a temporary folder is being made or removed, or a process started, of which
    nobody would know if the signal were raised now."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == tempfile.__file__:
            return True
        if code.co_filename == subprocess.__file__ and code.co_qualname == "Popen.__init__":
            return True
        frame = frame.f_back
    return False


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Do nothing at a signal: not SIG_IGN, which processes started while cleaning up would
    inherit."""
