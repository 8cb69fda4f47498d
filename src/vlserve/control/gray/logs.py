"""Reads logs that others append to and rename, each line once."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Cursor:
    """Up to where a log was read: the file, whatever its name is now, and the place in it."""

    inode: int = 0
    offset: int = 0


def end_of(log: Path) -> Cursor:
    """The cursor of all that is there now."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return Cursor()
    return Cursor(found.st_ino, found.st_size)


def read_since(log: Path, cursor: Cursor, containing: bytes) -> tuple[list[Line], Cursor]:
    """The whole lines after ``cursor`` that hold ``containing``, oldest first, and the cursor after
    them. Renamed files (``log.1`` is newer than ``log.2``) are read to their end. A cursor into a
    file that is there no more means all that is left; lines that are no JSON object are left out.
    """
    lines: list[Line] = []
    for file, place in _unread(log, cursor):
        new = _read(file, place)
        if new is None:  # renamed just now: found under its new name at the next look
            break
        whole = new[: new.rfind(b"\n") + 1]
        lines += _parsed(whole, containing)
        cursor = Cursor(place.inode, place.offset + len(whole))
    return lines, cursor


def _read(file: Path, place: Cursor) -> bytes | None:
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_ino != place.inode:
                return None
            opened.seek(place.offset)
            return opened.read()
    except FileNotFoundError:
        return None


def _unread(log: Path, cursor: Cursor) -> list[tuple[Path, Cursor]]:
    """Files with something to read, oldest first, and from where."""
    files = list(_files(log))
    begun = [
        place
        for place, (_, inode, size) in enumerate(files)
        if inode == cursor.inode and size >= cursor.offset
    ]
    unread = files[: begun[0] + 1] if begun else files
    return [
        (file, cursor if begun and inode == cursor.inode else Cursor(inode, 0))
        for file, inode, _ in reversed(unread)
    ]


def _files(log: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, inode, size) of the log and its renamed predecessors, newest first."""
    number, file = 0, log
    while True:
        try:
            found = file.stat()
        except FileNotFoundError:
            if number:
                return
        else:
            yield file, found.st_ino, found.st_size
        number += 1
        file = log.with_name(f"{log.name}.{number}")


def _parsed(text: bytes, containing: bytes) -> Iterator[Line]:
    for line in text.splitlines():
        if containing in line:
            try:
                parsed = json.loads(line)
            except ValueError:
                continue
            if isinstance(parsed, dict):
                yield parsed
