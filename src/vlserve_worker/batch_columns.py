"""From an input row's columns to a request's fields, an id, and the columns that are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vlserve.runtime.errors import ErrorCode
from vlserve_worker.batch_order import ROW_MARK
from vlserve_worker.batch_videos import IMAGE, VIDEO, Covers
from vlserve_worker.storage import AnyPath, path_of, read_range
from vlserve_worker.video import Place, VideoError

if TYPE_CHECKING:
    from vlserve.runtime.types import ItemError, Request
else:  # runtimes from before 0.1.0 call the module otherwise
    new, old = "vlserve.runtime.types", "vlserve.runtime.contract"
    own = import_module(new if find_spec(new) else old)
    ItemError, Request = own.ItemError, own.Request

__all__ = ["Columns", "InputRow", "ItemError"]

PATH_SUFFIX = "_path"
TEXT = "text"
ALIASES = {"img": "image_path"}
"""As data files for training and evaluation name it."""


@dataclass
class InputRow:
    """One row of a part. ``kept``: columns that go into the output; ``files``: field -> the path,
    offset and size of its bytes, size -1 for a whole file; ``error``: why it has no answer."""

    id: str
    row: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    error: ItemError | None = None

    @property
    def length(self) -> int:
        """Characters of its texts: rows of like length share a batch."""
        return sum(len(value) for value in self.fields.values() if isinstance(value, str))

    def item(self, covers: Covers) -> Request | ItemError:
        """Return the request, with the bytes of its files and a video's frame as its image, or why
        there is none."""
        if self.error:
            return self.error
        fields = dict(self.fields)
        for name, (path, offset, size) in self.files.items():
            try:
                place = path_of(path)
                if name == VIDEO and isinstance(place, Path):
                    fields[VIDEO] = Place(place, offset, size)
                else:
                    fields[name] = read_range(place, offset, size)
            except (OSError, ValueError) as error:
                return ItemError(ErrorCode.IMAGE_UNREADABLE, f"{name}: {error}")
        if VIDEO in fields:
            if IMAGE in fields:
                return ItemError(ErrorCode.FIELD_INVALID, "the row has an image and a video")
            try:
                fields[IMAGE] = covers.of(fields.pop(VIDEO))
            except VideoError as error:  # whose codes an older archive's runtime does not know
                return ItemError(cast(ErrorCode, error.code), error.message)
        return Request(fields, self.id)


class Columns:
    """Which column of the input is what."""

    def __init__(
        self, id: str, mapping: Mapping[str, str], keep: Sequence[str], fields: Sequence[str]
    ) -> None:
        """Take the names of columns.

        Args:
            id: The column of ids; rows without it are called by their number.
            mapping: Field -> column, where they have different names.
            keep: Columns that the output has too.
            fields: Those of the archive's task.
        """
        self.id, self.keep = id, tuple(keep)
        fields = [*fields, *([VIDEO] if IMAGE in fields else [])]
        names = {name: name for field in fields for name in (field, field + PATH_SUFFIX)}
        names |= {
            alias: name
            for alias, name in ALIASES.items()
            if name.removesuffix(PATH_SUFFIX) in fields
        }
        self._fields = names | {column: field for field, column in mapping.items()}

    @property
    def parquet_names(self) -> frozenset[str]:
        """Every column that is read."""
        return frozenset({self.id, *self.keep, *self._fields})

    def rows(self, lines: Iterable[Any], first: int, input: AnyPath) -> Iterator[InputRow]:
        """Yield a row for each line: bytes of JSON, or a mapping of columns, or an ItemError with
        the id, where it is known, of a row that cannot be read."""
        folder = input if input.is_dir() else input.parent
        for number, line in enumerate(lines, start=first):
            yield self._row(line, number, folder)

    def _row(self, line: Any, number: int, folder: AnyPath) -> InputRow:
        row = InputRow(str(number), number)
        try:
            values, files, why = _parsed(line)
            if values.get(self.id) is not None:
                row.id = str(values[self.id])
            row.kept = {name: values.get(name) for name in self.keep}
            if not why:
                row.fields, row.files, why = self._fields_of(values, files, folder)
        except (ValueError, RecursionError) as error:
            why = f"the row cannot be read: {error}"
        if why:
            row.error = ItemError(ErrorCode.BODY_UNREADABLE, why)
        return row

    def _fields_of(
        self, values: Mapping[str, Any], files: Mapping[str, Any], folder: AnyPath
    ) -> tuple[Mapping[str, Any], Mapping[str, tuple[str, int, int]], str]:
        """Return a request's fields, its files, and why there is none, empty where there is."""
        fields: dict[str, Any] = {}
        places = {name: (str(path), int(at), int(size)) for name, (path, at, size) in files.items()}
        for column, value in values.items():
            name = self._fields.get(column)
            if name is None or name in fields or name in places or _is_absent(name, value):
                continue
            if name.endswith(PATH_SUFFIX):
                name = name.removesuffix(PATH_SUFFIX)
                if not isinstance(value, str):
                    return {}, {}, f"{column} must be a path"
                places[name] = (str(folder / value), 0, -1)
            else:
                fields[name] = _bytes_of(value)
        return fields, places, ""


def _is_absent(name: str, value: Any) -> bool:
    """Return whether a field is absent: an empty cell of a CSV file, unless it is the text."""
    return value is None or (value == "" and name != TEXT)


def _bytes_of(value: Any) -> Any:
    """Return an image's bytes, which Hugging Face's datasets write as a struct of bytes and
    path."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    return value


def _parsed(line: Any) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """Return columns, files, and why the row cannot be read, empty where it can."""
    if not isinstance(line, bytes):
        values, why = line
        return values, {}, why
    row = json.loads(line)
    if line.startswith(ROW_MARK):
        return row.get("columns", {}), row.get("files", {}), row.get("error", "")
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    return row, {}, ""
