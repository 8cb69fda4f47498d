"""The files of one part of an offline job: rows, digests of ids, a receipt, and what a part keeps
that runs row by row.

In a folder a part's file appears whole, by a rename after a sync, and its receipt comes after it; a
part without one is done again. In an object storage a part is one upload, and the last that is
written of it: a receipt without a part counts for nothing.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlserve_worker.batch_files import OutputRow, as_text
from vlserve_worker.storage import AnyPath, ObjectPath, appearing, write_whole

STATE = ".vlserve"
ID_BYTES = 8
"""Of an id's digest: of ten million ids two share one with a chance of 1 to 400,000."""


def part_name(number: int, suffix: str) -> str:
    return f"part-{number:05}{suffix}"


def parts_in(out: AnyPath, *formats: str) -> dict[int, AnyPath]:
    """Return the parts in a folder, in the order of their numbers; a file that is only called
    like one is none."""
    parts: dict[int, AnyPath] = {}
    for path in out.glob("part-*"):
        digits = path.name.removeprefix("part-").partition(".")[0]
        number = int(digits) if digits.isdecimal() else -1
        if any(path.name == part_name(number, f".{format}") for format in formats):
            parts[number] = path
    return dict(sorted(parts.items()))


class PartFiles:
    """One part's files."""

    def __init__(self, out: AnyPath, number: int, suffix: str) -> None:
        self.part = out / part_name(number, suffix)
        self._receipt = out / STATE / "receipts" / f"{number:05}.json"
        self._ids = self._receipt.with_suffix(".ids")
        careful = out / STATE / "careful"
        self._partial, self._note = careful / f"{number:05}.jsonl", careful / f"{number:05}.note"

    def finish(
        self,
        write: Callable[[Path], None],
        ids: Iterable[str],
        receipt: Mapping[str, Any],
        *,
        redo: bool,
    ) -> None:
        """Keep a part.

        Args:
            write: Fills a file with its rows.
            redo: The part was there, with other rows.
        """
        digests, receipt_bytes = b"".join(map(_digest, ids)), json.dumps(receipt).encode()
        before_part = isinstance(self.part, ObjectPath) and not redo
        if before_part:
            write_whole(self._ids, digests)
            write_whole(self._receipt, receipt_bytes)
        with appearing(self.part) as handle:
            write(handle)
        if not before_part:
            write_whole(self._ids, digests)
            write_whole(self._receipt, receipt_bytes)
        self._forget_careful()

    def partial_rows(self) -> list[OutputRow]:
        """Return the rows that a careful run has answered. A torn line ends them, and is cut off:
        what is added goes after a whole one."""
        if isinstance(self._partial, ObjectPath):
            return [json.loads(row.read_bytes()) for row in sorted(self._partial.glob("*"))]
        if not self._partial.exists():
            return []
        content = self._partial.read_bytes()
        rows, size = _whole_lines(content)
        if size < len(content):
            os.truncate(self._partial, size)
        return rows

    def partial_count(self) -> int:
        """Return how many rows a careful run has answered."""
        if isinstance(self._partial, ObjectPath):
            return sum(1 for _ in self._partial.glob("*"))
        return self._partial.read_bytes().count(b"\n") if self._partial.exists() else 0

    def add_partial(self, row: OutputRow) -> None:
        """Keep one answered row: as a line, or as an object, which cannot grow."""
        line = json.dumps(row, default=as_text).encode()
        if isinstance(self._partial, ObjectPath):
            write_whole(self._partial / f"{int(row['row']):012}", line)
            return
        with self._partial.open("ab") as file:
            file.write(line + b"\n")

    def note(self) -> dict[str, Any] | None:
        """Return the row that ran when a careful run ended, and how often it has run."""
        try:
            note: dict[str, Any] = json.loads(self._note.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return note

    def write_note(self, note: Mapping[str, Any]) -> None:
        content = json.dumps(note, default=as_text).encode()
        if isinstance(self._note, ObjectPath):
            write_whole(self._note, content)
        else:
            self._note.write_bytes(content)

    def _forget_careful(self) -> None:
        if isinstance(self._partial, ObjectPath):
            for row in self._partial.glob("*"):
                row.unlink(missing_ok=True)
        else:
            self._partial.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _whole_lines(content: bytes) -> tuple[list[OutputRow], int]:
    """Return the rows before the first line that is torn, and how many bytes they have."""
    rows: list[OutputRow] = []
    size = 0
    for line in content.split(b"\n")[:-1]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
        size += len(line) + 1
    return rows, size


def _digest(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode("utf-8", "replace"), digest_size=ID_BYTES).digest()
