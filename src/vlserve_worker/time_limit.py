"""A time limit for what a worker is at work on.

TorchServe stops a worker that is late too, but says nothing of what it was at. Here the worker ends
itself a little earlier, with the places in the code where its threads are; what it was at stands in
its note (crash_notes.py), and whoever reads that tries each of it alone, for less time.
"""

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MARGIN_S = 1.0
"""The worker ends itself so long before TorchServe would end it."""

ALONE = 1 / 3
"""Share of the time limit that one request has which is tried alone."""

ALONE_AT_LEAST_S = 5.0


@contextmanager
def ended_after(seconds: float | None) -> Iterator[None]:
    """End the process where the body takes longer, whatever it is in: compiled code too."""
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def limit_of(response_timeout_s: float, *, alone: bool) -> float:
    """Return the seconds that a batch has, or a request that is tried alone, where TorchServe ends
    a worker after ``response_timeout_s``."""
    whole = max(response_timeout_s - MARGIN_S, response_timeout_s / 2)
    return min(whole, max(ALONE_AT_LEAST_S, whole * ALONE)) if alone else whole
