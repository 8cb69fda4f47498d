"""Reading of logs that others append to and rename: each line once."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vlserve.control.log_rotation import renamed
from vlserve.control.log_sampling import TimeOf, mapped, offset_of
from vlserve.runtime.errors import wrong_fields

Line = dict[str, Any]
"""One line, parsed as JSON."""

Model = TypeVar("Model")

logger = logging.getLogger(__name__)

READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Cursor:
    """A place in a log, up to which it was read: the file, whatever its name is now, and the offset
    in it. A file is known by its first line, which no other one has: inodes are used again."""

    first_line: str = ""
    """Its sha256; empty for a file without a whole line."""
    offset: int = 0


def end_of(log: Path) -> Cursor:
    """Return the cursor after all that is logged now."""
    for file, first_line in _files(log):
        return Cursor(first_line, file.stat().st_size) if first_line else Cursor()
    return Cursor()


def begin_of(log: Path, since: float, time_of: TimeOf) -> Cursor:
    """Return a cursor before which no line is of ``since`` (Unix time, s) or later."""
    begin = Cursor()
    with ExitStack() as stack:
        for text in mapped([file for file, _ in _files(log)], stack):
            first_line = name_of(text[: text.find(b"\n") + 1])
            if first_line:
                begin = Cursor(first_line, offset_of(text, since, time_of))
            if begin.offset:
                break
    return begin


def unread_bytes(log: Path, cursor: Cursor) -> int:
    """Return how much was logged after ``cursor``."""
    with suppress(FileNotFoundError):  # renamed just now
        return sum(file.stat().st_size - place.offset for file, place in _unread(log, cursor))
    return 0


def read_since(
    log: Path, cursor: Cursor, needle: bytes, most: int = READ_BYTES
) -> tuple[list[Line], Cursor]:
    """Return the whole lines after ``cursor`` that hold ``needle``, oldest first, with the
    cursor after them.

    Renamed files (``log.1`` is newer than ``log.2``) are read to their end. A cursor into a file
    that is there no more means all that is left; lines that are no JSON object are left out. At
    ``most`` bytes of a file are read at a time: after a long pause, call it again.
    """
    lines: list[Line] = []
    for file, place in _unread(log, cursor):
        new = _read(file, place, most)
        if new is None:  # renamed just now: read under its new name at the next call
            break
        whole = new[: new.rfind(b"\n") + 1]
        lines += _parsed(whole, needle)
        cursor = Cursor(place.first_line, place.offset + len(whole))
        if len(new) == most:
            break
    return lines, cursor


def as_model(lines: Iterable[Line], read: Callable[[Line], Model], log: Path) -> Iterator[Model]:
    """Yield each line as the model that ``read`` makes of it. Lines that it refuses (of a newer
    schema, or of another program) are left out, with a warning that counts them."""
    refusals, reason = 0, ""
    for line in lines:
        try:
            model = read(line)
        except ValidationError as error:
            refusals, reason = refusals + 1, reason or wrong_fields(error, "line")
        else:
            yield model
    if refusals:
        logger.warning("%s: %s lines cannot be read, the first: %s", log.name, refusals, reason)


def unix_time(text: str) -> float | None:
    """Return the Unix time, s, of a time in ISO 8601 (without a zone: UTC); None of no time."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def is_within(at: str, since: float, until: float | None = None) -> bool:
    """Return whether a time lies in a span; one that a line does not tell lies in none."""
    moment = unix_time(at)
    return moment is not None and since <= moment and (until is None or moment < until)


def _read(file: Path, place: Cursor, most: int) -> bytes | None:
    try:
        with file.open("rb") as stream:
            if name_of(stream.readline()) != place.first_line:
                return None
            stream.seek(place.offset)
            return stream.read(most)
    except FileNotFoundError:
        return None


def _unread(log: Path, cursor: Cursor) -> list[tuple[Path, Cursor]]:
    """Return the files with something to read, oldest first, and the place to read from."""
    files = [(file, first_line) for file, first_line in _files(log) if first_line]
    names = [first_line for _, first_line in files]
    begun = cursor.first_line in names
    if begun:
        files = files[: names.index(cursor.first_line) + 1]
    return [
        (file, cursor if first_line == cursor.first_line else Cursor(first_line))
        for file, first_line in reversed(files)
    ]


def _files(log: Path) -> Iterator[tuple[Path, str]]:
    """Yield the log and its renamed predecessors with their first lines, newest first."""
    if log.exists():
        yield log, _first_line(log)
    for number in count(1):
        file = renamed(log, number)
        if not file.exists():
            return
        yield file, _first_line(file)


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return name_of(stream.readline())
    except FileNotFoundError:
        return ""


def name_of(line: bytes) -> str:
    """Return the name of a file by its first line: its sha256; empty of a line without an end."""
    return hashlib.sha256(line).hexdigest() if line.endswith(b"\n") else ""


def _parsed(text: bytes, needle: bytes) -> Iterator[Line]:
    for line in text.splitlines():
        if needle in line:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
