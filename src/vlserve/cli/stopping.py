"""Makes SIGTERM and SIGHUP end a command as Ctrl-C does: what it started, and what it wrote into
the temporary folder, goes with it. A scheduler, a container and a closed terminal stop it so.
"""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal ends the command; the exit code is that of a process which the signal killed."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def end_on_signals() -> None:
    """Raise `Stopped` in the main thread at the first such signal; later ones are passed over, so
    that nothing breaks the cleaning up. A signal that the caller ignores (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        if signal.getsignal(each) is _stop:
            signal.signal(each, _pass_over)
    raise Stopped(number)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which processes started while cleaning up would inherit."""
