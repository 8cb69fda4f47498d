"""CSV files, and lines that Python's str(dict) wrote, to JSON lines."""

import ast
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlserve.data.csv_records import Record, read_records
from vlserve.data.data_files import (
    TOO_LONG,
    LeftOut,
    read_raw_lines,
    refuse_own_output,
    write_object,
    written_whole,
)
from vlserve.data.fields import KEEP_LABELS, LabelMapping, templates_for
from vlserve.errors import DataError
from vlserve.text_files import encoding_hint

MAX_REPR_BYTES = 1024**2
"""Of one line: Python's parser takes about a hundred times as much memory."""


@dataclass
class Converted:
    """What became of the lines. ``labels``: items written with each; ``dropped``: items left out
    as the mapping of labels says; ``unseen``: labels of the mapping that no line has."""

    output: Path
    written: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unseen: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def lines(self) -> int:
        """Lines that could be used."""
        return self.written + self.dropped.total()


def from_csv(
    inputs: Sequence[Path],
    output: Path,
    columns: Mapping[str, str],
    *,
    keep: Sequence[str] = (),
    labels: LabelMapping = KEEP_LABELS,
    strict: bool = False,
) -> Converted:
    """Write an item for each record of CSV or TSV files, and return what became of them.

    Args:
        columns: Field -> column, or a template of columns in braces.
        keep: Columns that items keep under their own names.
        labels: What becomes of labels.
        strict: Whether any record that cannot be used is an error.

    Raises:
        DataError: A file cannot be used; nothing is written then.
    """
    refuse_own_output(output, inputs)
    result, ids = Converted(output), set[str]()
    with written_whole(output) as file:
        for path in inputs:
            before, left_out = result.lines, LeftOut()
            for item in _items(path, columns, keep, left_out):
                label = item.get("label")
                new = None if label is None else labels.of(label)
                if label is not None:
                    ids.add(label)
                    if new is None:
                        result.dropped[label] += 1
                        continue
                    result.labels[str(new)] += 1
                write_object(file, item if new is None else {**item, "label": new})
                result.written += 1
            left_out.refuse(path, result.lines - before, strict=strict)
            result.left_out.merge(left_out)
    result.unseen = tuple(label for label in labels.to if label not in ids)
    return result


def _items(
    path: Path, columns: Mapping[str, str], keep: Sequence[str], left_out: LeftOut
) -> Iterator[Mapping[str, str]]:
    records = read_records(path)
    heads = _heads(path, next(records, None))
    templates = templates_for(columns, keep, heads, path.name)
    for count, record in enumerate(records, start=1):
        try:
            row = _row(record, heads)
            item = {"id": f"{path.stem}-{count}"}
            item |= {name: template.fill(row) for name, template in templates.items()}
            for name in ("id", "img", "label"):
                if item.get(name) == "":
                    raise ValueError(f"{name} is empty")
        except ValueError as error:
            left_out.add(path, record.line, str(error))
        else:
            yield item


def _heads(path: Path, record: Record | None) -> tuple[str, ...]:
    if record is None:
        raise DataError(f"{path} has no line")
    if record.why:
        raise DataError(
            f"{path} cannot be read: line {record.line}, which names the columns: {record.why}"
            f"{encoding_hint(path)}"
        )
    return tuple(head.strip() for head in record.cells)


def _row(record: Record, heads: Sequence[str]) -> Mapping[str, str]:
    if record.why:
        raise ValueError(record.why)
    if len(record.cells) != len(heads):
        raise ValueError(f"it has {len(record.cells)} columns, and the first line {len(heads)}")
    return dict(zip(heads, record.cells, strict=True))


def from_repr(inputs: Sequence[Path], output: Path, *, strict: bool = False) -> Converted:
    """Write a JSON object for each line that holds the ``str`` of a Python dict; such lines are
    read as literals (`ast.literal_eval`) and never run.

    Raises:
        DataError: A file cannot be used; nothing is written then.
    """
    refuse_own_output(output, inputs)
    result = Converted(output)
    with written_whole(output) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in literals that Python finds odd
        for path in inputs:
            before, left_out = result.written, LeftOut()
            for number, raw in read_raw_lines(path):
                try:
                    write_object(file, _literal(raw))
                except ValueError as error:
                    left_out.add(path, number, str(error))
                else:
                    result.written += 1
            left_out.refuse(path, result.written - before, strict=strict)
            result.left_out.merge(left_out)
    return result


def _literal(raw: bytes | None) -> dict[str, Any]:
    if raw is None:
        raise ValueError(TOO_LONG)
    if len(raw) > MAX_REPR_BYTES:
        raise ValueError(f"the line has more than {MAX_REPR_BYTES} bytes")
    try:
        value = ast.literal_eval(raw.decode("utf-8-sig").strip())
        if not isinstance(value, dict):
            raise ValueError(f"it is no dict, but a {type(value).__name__}")
        if not value:
            raise ValueError("it is an empty dict")
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no string")
        json.dumps(value, allow_nan=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except SyntaxError as error:
        raise ValueError(f"no literal of Python: {error.msg} at column {error.offset}") from error
    except (MemoryError, RecursionError) as error:
        raise ValueError("nested too deeply") from error
    except TypeError as error:
        raise ValueError(f"it holds what JSON cannot: {error}") from error
    return value
