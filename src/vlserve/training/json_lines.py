"""Files of one JSON object a line, as users write them: each line read, or left out with a reason.

Where more than half of the lines cannot be used the file is refused, since what is left is not
what its author meant.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vlserve.errors import DataError
from vlserve.text_files import encoding_hint

SHOWN_OF_EACH = 5
"""Bad lines that are shown of each kind."""
SHOWN_KINDS = 10
VALUES = re.compile(r"(?P<name>(?<=^id ).+(?= is on line)|(?<=^unknown label ).+)|\S+", re.DOTALL)
"""Of a reason: names, and words, of which ``_of_a_line`` says whether they are that line's own."""
_PLAIN = re.compile(r"[a-z,;:'()-]+")


@dataclass(frozen=True)
class BadLine:
    """A line of a file (from 1) that was left out, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}: {self.reason}"

    @property
    def kind(self) -> str:
        """The reason without what is this line's own: names, numbers, paths."""
        return VALUES.sub(_of_a_line, self.reason)


def _of_a_line(words: re.Match[str]) -> str:
    """Return an ellipsis in the place of what is one line's own; a word of the reason as it is."""
    word = words[0]
    return word if words["name"] is None and _PLAIN.fullmatch(word) else "…"


@dataclass(frozen=True)
class BadKind:
    """Some bad lines of one kind, and how many more of it there are."""

    shown: tuple[BadLine, ...]
    more: int


class LineFile(Protocol):
    """A file read line by line, whatever its items are."""

    @property
    def path(self) -> Path: ...
    @property
    def used(self) -> int:
        """Return how many lines are used."""
        ...

    @property
    def bad_lines(self) -> tuple[BadLine, ...]: ...


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers, from 1.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return ((number, raw) for number, raw in enumerate(lines, start=1) if raw.strip())


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse one line as a JSON object. ValueError says what it is instead."""
    try:
        fields = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(_not_json(error)) from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error
    if isinstance(fields, list):
        raise ValueError("not a JSON object but a list: write each of its objects on its own line")
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def as_text(value: Any) -> Any:
    """Return a whole number as its digits, anything else as it is: ids and labels are names."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def refuse_bad_lines(files: Sequence[LineFile], *, strict: bool) -> tuple[BadLine, ...]:
    """Return all bad lines.

    Raises:
        DataError: a file has no line that can be used, or more than half of its lines cannot be;
            with ``strict``, for any bad line.
    """
    bad = tuple(line for file in files for line in file.bad_lines)
    if strict and bad:
        hints = "".join(encoding_hint(file.path) for file in files if file.bad_lines)
        raise DataError(f"{len(bad)} bad line(s): {first_of(bad)}{hints}")
    for file in files:
        refuse_mostly_bad(file.path, file.used, file.bad_lines)
    return bad


def refuse_mostly_bad(path: Path, good: int, bad_lines: Sequence[BadLine]) -> None:
    """Raise DataError where no line of a file can be used, or more than half cannot be."""
    if not good:
        reasons = f": {first_of(bad_lines)}{encoding_hint(path)}" if bad_lines else ", it is empty"
        raise DataError(f"{path} has no usable line{reasons}")
    if len(bad_lines) > good:
        raise DataError(
            f"{len(bad_lines)} of the {good + len(bad_lines)} lines of {path} cannot be used: "
            f"{first_of(bad_lines)}{encoding_hint(path)}"
        )


def by_kind(bad_lines: Sequence[BadLine]) -> list[BadKind]:
    """Group bad lines by what is wrong with them, in the order of the first of each; of very many
    kinds the last ones are put together."""
    kinds: dict[str, list[BadLine]] = {}
    for bad in bad_lines:
        kind = bad.kind if bad.kind in kinds or len(kinds) < SHOWN_KINDS else ""
        kinds.setdefault(kind, []).append(bad)
    return [
        BadKind(tuple(lines[:SHOWN_OF_EACH]), max(0, len(lines) - SHOWN_OF_EACH))
        for lines in kinds.values()
    ]


def first_of(bad: Sequence[BadLine]) -> str:
    """Return the first line of each kind, and how many more there are."""
    first = [kind.shown[0] for kind in by_kind(bad)][:SHOWN_OF_EACH]
    text = "; ".join(str(line) for line in first)
    return text + (f"; and {len(bad) - len(first)} more" if len(bad) > len(first) else "")


def write_bad_lines(path: Path, bad_lines: Sequence[BadLine]) -> None:
    """Write ``{"count", "lines": [{"file", "line", "reason"}, …]}``."""
    report = {"count": len(bad_lines), "lines": [asdict(line) for line in bad_lines]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _not_json(error: json.JSONDecodeError) -> str:
    """Return what is wrong, and for what is often written instead, what to write."""
    message = f"not JSON: {error.msg} at column {error.colno}"
    rest, text = error.doc[error.pos :], error.doc.strip()
    if rest.startswith(("'", "None", "True", "False")):
        return f"{message}: it looks like Python's str(dict); write lines with json.dumps"
    if error.msg == "Extra data" and rest.startswith(",") and text.startswith("{"):
        return f"{message}: one object a line, without commas between them"
    if text in ("[", "]", "{", "}", "[{", "}]"):
        return f"{message}: one whole object a line, not a JSON document over several lines"
    if not text.startswith(("{", "[")) and text.count(",") + text.count("\t") >= 2:
        return f"{message}: it looks like CSV; one JSON object a line is read"
    return message
