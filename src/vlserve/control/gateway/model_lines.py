"""Where each model's lines lie in the access log, so that a busy model leaves room for the others.

The places of lines are kept: a line is passed once, however often somebody asks.
"""

import re
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from mmap import mmap
from pathlib import Path
from random import Random

from vlserve.control.log_rotation import LOG_BYTES, renamed
from vlserve.control.log_sampling import Sample, TimeOf, mapped, offset_of

MOST_LINES = 1000
"""Read for one answer, of all models; parsing them takes about 10 ms."""
LEAST_LINES = 100
"""Of each model that has as many, beyond `MOST_LINES`."""
MOST_BYTES = 2 * LOG_BYTES
"""Of a file that was not looked at before: passed in 0.2 s. What it has before them is left out."""
_MODEL = re.compile(rb'"model": ?"([^"\n]*)"')
"""In JSON no string can hold it: a quotation mark in one has a backslash before it."""


@dataclass
class _Passed:
    """What is known of one file. ``end``: behind its last line that was passed. ``places``: model
    -> where its lines name it, in their order."""

    end: int
    places: dict[bytes, "array[int]"] = field(default_factory=lambda: defaultdict(_no_places))


@dataclass(frozen=True)
class _Run:
    """Lines of one model in one file."""

    text: mmap
    places: "array[int]"


class ModelLines:
    """The lines of an access log and of the one before it, by model. Not thread-safe."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._passed: dict[bytes, _Passed] = {}

    def since(self, time_s: float, time_of: TimeOf) -> Mapping[str, Sample]:
        """Return model -> its lines since about ``time_s`` (Unix time), for every model that has
        one: all of them, or a part that is drawn evenly over the lines."""
        with ExitStack() as stack:
            texts = {
                text[: text.find(b"\n") + 1]: text
                for text in mapped((renamed(self._log, 1), self._log), stack)
            }
            texts.pop(b"", None)  # a file whose first line is being written
            self._passed = {
                name: self._read_on(text, self._passed.get(name), time_s, time_of)
                for name, text in texts.items()
            }
            runs: dict[bytes, list[_Run]] = defaultdict(list)
            for name, text in texts.items():
                start = offset_of(text, time_s, time_of)
                for model, places in self._passed[name].places.items():
                    if recent := places[bisect_left(places, start) :]:
                        runs[model].append(_Run(text, recent))
            total = sum(map(_count, runs.values()))
            return {
                model.decode(errors="replace"): _drawn(of_model, total)
                for model, of_model in runs.items()
            }

    @staticmethod
    def _read_on(text: mmap, progress: _Passed | None, time_s: float, time_of: TimeOf) -> _Passed:
        """Pass the lines that have come since; a file is known by its first line, which no other
        one has, because inodes are used again."""
        if progress is None or progress.end > len(text):
            progress = _Passed(max(offset_of(text, time_s, time_of), len(text) - MOST_BYTES))
        end = text.rfind(b"\n") + 1
        for match in _MODEL.finditer(text, progress.end, end):
            progress.places[match[1]].append(match.start())
        progress.end = max(progress.end, end)
        return progress


def _no_places() -> "array[int]":
    return array("Q")


def _count(runs: Sequence[_Run]) -> int:
    return sum(len(run.places) for run in runs)


def _drawn(runs: Sequence[_Run], total: int) -> Sample:
    """Return a model's part of what is read of ``total`` lines: one at random of each of as many
    equal stretches. Lines at equal distances would be alike where requests take turns."""
    count = _count(runs)
    most = max(LEAST_LINES, MOST_LINES * count // total)
    numbers: Iterable[int] = range(count)
    if count > most:
        chance = Random(count)
        ends = [count * number // most for number in range(most + 1)]
        numbers = (chance.randrange(*stretch) for stretch in pairwise(ends))
    lines = [_line(runs, number) for number in numbers]
    return Sample(lines, count / len(lines))


def _line(runs: Sequence[_Run], number: int) -> bytes:
    for run in runs:
        if number < len(run.places):
            break
        number -= len(run.places)
    at = run.places[number]
    return run.text[run.text.rfind(b"\n", 0, at) + 1 : run.text.find(b"\n", at)]
