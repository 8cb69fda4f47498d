"""Data files read and written line by line: JSON objects in, lines out, and what was left out."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vlserve.errors import DataError
from vlserve.text_files import encoding_hint
from vlserve.training.json_lines import (
    SHOWN_KINDS,
    SHOWN_OF_EACH,
    BadKind,
    BadLine,
    first_of,
    parse_object,
)

MAX_LINE_BYTES = 16 * 1024**2
"""Of one line; a longer one is left out, and never held in memory whole."""


class LeftOut:
    """Lines that are not used: how many, and the first of each kind."""

    def __init__(self) -> None:
        self.count = 0
        self._kinds: Counter[str] = Counter()
        self._shown: dict[str, list[BadLine]] = {}

    def add(self, path: Path, line: int, reason: str) -> None:
        """Note a line, from 1, and why it is left out."""
        bad = BadLine(str(path), line, reason)
        kind = bad.kind if bad.kind in self._kinds or len(self._kinds) < SHOWN_KINDS else ""
        self.count += 1
        self._kinds[kind] += 1
        examples = self._shown.setdefault(kind, [])
        if len(examples) < SHOWN_OF_EACH:
            examples.append(bad)

    def merge(self, other: "LeftOut") -> None:
        """Take over what another file left out."""
        for lines in other._shown.values():
            for bad in lines:
                self.add(Path(bad.file), bad.line, bad.reason)
        for kind, count in other._kinds.items():
            more = count - len(other._shown[kind])
            place = kind if kind in self._kinds else ""
            self.count += more
            self._kinds[place] += more
            self._shown.setdefault(place, [])

    def kinds(self) -> list[BadKind]:
        """Return the kinds in the order of the first line of each."""
        return [
            BadKind(tuple(lines), self._kinds[kind] - len(lines))
            for kind, lines in self._shown.items()
        ]

    def refuse(self, path: Path, used: int, *, strict: bool) -> None:
        """Raise DataError where no line is used, or more are left out than used; with ``strict``,
        for any that is left out."""
        why = first_of([bad for lines in self._shown.values() for bad in lines])
        if not used and not self.count:
            raise DataError(f"{path} has no line")
        if self.count > used or (strict and self.count):
            lines = used + self.count
            raise DataError(
                f"{self.count} of the {lines} lines of {path} cannot be used: {why}"
                f"{encoding_hint(path)}"
            )


def read_raw_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that are not blank, with their numbers, from 1; None for one that is too
    long.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from _raw_lines(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _raw_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            if line.strip():
                yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, None


TOO_LONG = f"the line has more than {MAX_LINE_BYTES} bytes"


def read_objects(path: Path, left_out: LeftOut) -> Iterator[tuple[int, bytes, Mapping[str, Any]]]:
    """Yield each JSON object with its line's number and bytes; others go into ``left_out``.

    Raises:
        DataError: The file cannot be read.
    """
    for number, raw in read_raw_lines(path):
        if raw is None:
            left_out.add(path, number, TOO_LONG)
            continue
        try:
            yield number, raw, parse_object(raw)
        except ValueError as error:
            left_out.add(path, number, str(error))


def labels_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an item's labels; none where it has no usable one."""
    label = fields.get("label")
    values = label if isinstance(label, list) else [label]
    return tuple(
        dict.fromkeys(
            str(entry) for entry in values if isinstance(entry, str | int) and entry != ""
        )
    )


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, which takes the place of ``path`` once the body ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_object(file: IO[bytes], fields: Mapping[str, Any]) -> None:
    """Write one line. ValueError for what JSON cannot hold."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    file.write(text.encode("utf-8") + b"\n")


def refuse_own_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise DataError where an input would be written over."""
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise DataError(f"{output} is an input too: name another --output")
