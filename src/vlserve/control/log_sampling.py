"""Samples of logs whose lines are in the order of their time: an answer costs the same however long
the log is."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

_BISECT_UNTIL = 4096
"""Bytes; so exactly are beginnings and ends of a time found. Callers compare the times of lines."""

TimeOf = Callable[[bytes], float | None]
"""A line -> its Unix time, s; None for what is no such line."""


@dataclass(frozen=True)
class Sample:
    """Lines of some time, oldest first. ``scale``: how many each of them stands for."""

    lines: Sequence[bytes]
    scale: float


@dataclass(frozen=True)
class _Span:
    text: mmap.mmap
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def sample_lines(
    files: Sequence[Path], since: float, until: float | None, most: int, time_of: TimeOf
) -> Sample:
    """Return lines of ``files`` (oldest first) from about ``since`` to about ``until`` (Unix time,
    s; None: their end).

    All where they are fewer than about half of ``most``; else ``most`` lines, spread evenly over
    the bytes.
    """
    with ExitStack() as stack:
        spans: list[_Span] = []
        for text in mapped(files, stack):
            start = offset_of(text, since, time_of)
            end = len(text)
            if until is not None:
                end = min(end, offset_of(text, until, time_of) + _BISECT_UNTIL)
            spans.append(_Span(text, start, max(start, end)))
        return _sample(spans, most)


def mapped(files: Sequence[Path], stack: ExitStack) -> Iterator[mmap.mmap]:
    """Yield the bytes of each file that has some, until ``stack`` is closed."""
    for file in files:
        with suppress(OSError, ValueError):  # empty, or being renamed
            raw = stack.enter_context(file.open("rb"))
            text = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
            stack.callback(text.close)
            yield text


def _sample(spans: Sequence[_Span], most: int) -> Sample:
    total = sum(span.bytes for span in spans)
    whole = all(_is_short(span, most) for span in spans)
    lines: list[bytes] = []
    for span in spans:
        share = most * span.bytes // max(1, total)
        lines += _all_lines(span) if whole else _some_lines(span, share)
    size = sum(len(line) + 1 for line in lines)
    return Sample(lines, 1.0 if whole or not size else max(1.0, total / size))


def _is_short(span: _Span, most: int) -> bool:
    head = span.text[span.start : min(span.end, span.start + _BISECT_UNTIL)]
    mean = len(head) / max(1, head.count(b"\n"))
    return span.bytes <= mean * most / 2


def _all_lines(span: _Span) -> list[bytes]:
    end = max(span.start, span.text.rfind(b"\n", span.start, span.end))
    return span.text[span.start : end].splitlines()


def _some_lines(span: _Span, most: int) -> Iterator[bytes]:
    """Yield ``most`` whole lines, evenly spread."""
    for number in range(most):
        begin = span.text.find(b"\n", span.start + span.bytes * number // most) + 1
        end = span.text.find(b"\n", begin) if begin else -1
        if end < 0 or begin >= span.end:
            return
        yield span.text[begin:end]


def offset_of(text: mmap.mmap, since: float, time_of: TimeOf) -> int:
    """Return where a line begins before which none is of ``since`` or later, by bisection."""
    low, high = 0, len(text)
    while high - low > _BISECT_UNTIL:
        middle = text.find(b"\n", (low + high) // 2) + 1
        if not middle or middle >= high:
            break
        at = _first_time(text, middle, high, time_of)
        if at is not None and at < since:
            low = middle
        else:
            high = middle
    return low


def _first_time(text: mmap.mmap, begin: int, limit: int, time_of: TimeOf) -> float | None:
    """Return the time of the first line that has one, of those that begin from ``begin`` on and
    before ``limit``."""
    while begin < limit:
        end = text.find(b"\n", begin)
        if end < 0:
            return None
        at = time_of(text[begin:end])
        if at is not None:
            return at
        begin = end + 1
    return None
