"""Records of a CSV file with the line on which each begins; broken ones do not take others along.

A quote that is opened and not closed would swallow lines up to the next quote. So a record is read
with as few lines as close its quotes, and where that gives none, the line on which it begins is
broken and reading goes on at the next one.
"""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlserve.data.data_files import MAX_LINE_BYTES, TOO_LONG, read_raw_lines

MAX_RECORD_LINES = 200
"""Of a record with line breaks inside of quotes."""
_UNFINISHED = "unexpected end of data"
"""How Python's reader calls a quote that is not closed."""


@dataclass(frozen=True)
class Record:
    """``line``: of the file, from 1; ``why``: why it cannot be read, empty where it can."""

    line: int
    cells: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class _Line:
    number: int
    text: str = ""
    why: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """Yield every record of a UTF-8 file; ``.tsv`` has tabs between cells, others commas.

    Raises:
        DataError: The file cannot be read.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = (_decoded(number, raw) for number, raw in read_raw_lines(path))
    queue: deque[_Line] = deque()
    while first := _next(queue, lines, 0):
        record, count = _record(first, queue, lines, delimiter)
        for _ in range(count):
            queue.popleft()
        if record is not None:
            yield record


def _record(
    first: _Line, queue: deque[_Line], lines: Iterator[_Line], delimiter: str
) -> tuple[Record | None, int]:
    """Return the record that begins on the first line, and how many lines it has; one, where it is
    broken."""
    if first.why:
        return Record(first.number, why=first.why), 1
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        while count < MAX_RECORD_LINES:
            line = _next(queue, lines, count)
            if line is None or line.why:
                return
            count += 1
            yield line.text

    try:
        cells = tuple(next(csv.reader(texts(), delimiter=delimiter, strict=True)))
    except csv.Error as error:
        if str(error).startswith(_UNFINISHED):
            return Record(first.number, why="a quote is opened on this line, and none closes it"), 1
        return Record(first.number, why=f"a quote is in the wrong place: {error}"), 1
    return (Record(first.number, cells) if cells else None), count


def _next(queue: deque[_Line], lines: Iterator[_Line], place: int) -> _Line | None:
    """Return the line at a place of those that wait, where more are read as they are needed."""
    while len(queue) <= place:
        line = next(lines, None)
        if line is None:
            return None
        queue.append(line)
    return queue[place]


def _decoded(number: int, raw: bytes | None) -> _Line:
    if raw is None:
        return _Line(number, why=TOO_LONG)
    try:
        return _Line(number, raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return _Line(number, why=f"not UTF-8: {error.reason} at byte {error.start}")
