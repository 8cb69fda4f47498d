"""What a worker of an offline job reads and writes: spooled lines and Parquet in, rows out."""

import json
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Union, get_args, get_origin

from pydantic import BaseModel

from vlserve_worker.storage import AnyPath, parquet_file

if TYPE_CHECKING:
    import pyarrow

OutputRow = dict[str, Any]
STREAMED_ROWS = 8
"""Of a Parquet file, at a time: memory that was just used is faster than new memory."""
OWN_COLUMNS = ("id", "row", "error_code", "error_message")
"""What an output row has beside the answer."""
UNREADABLE_CELL = (ValueError, OverflowError)
"""What pyarrow raises of a text that is not UTF-8, and of a time that Python has no date for."""
WHOLE = "answer"
"""The column with the whole answer as JSON, of a task that does not say what its answers hold."""


def check_kept(keep: Iterable[str], answer: Collection[str]) -> None:
    """Refuse kept columns that are called as the job's own, or as a field of the ``answer``: a row
    has one value of a name. ValueError."""
    for name in keep:
        if name in OWN_COLUMNS or name in answer:
            raise ValueError(
                f"{name}: the output has {name} of its own; leave it out of --keep, or give the "
                "input's column another name"
            )


class Writer(Protocol):
    """Writes the rows of one part, and reads them again."""

    suffix: str

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None: ...

    def read(self, path: AnyPath) -> list[OutputRow]: ...


def writer_of(format: str, answer: type[BaseModel], keep: Sequence[str]) -> Writer:
    """Return the writer of ``format``, "jsonl" or "parquet", for answers of this schema. ValueError
    where a kept column is called as one of theirs."""
    check_kept(keep, answer.model_fields or ([WHOLE] if format == "parquet" else []))
    return JsonWriter() if format == "jsonl" else ParquetWriter(answer, keep)


class JsonWriter:
    """JSON lines."""

    suffix = ".jsonl"

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None:
        # half of a surrogate pair, which JSON may hold and UTF-8 may not, stays an escape
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=as_text) + "\n")

    def read(self, path: AnyPath) -> list[OutputRow]:
        return read_output(path)


class ParquetWriter:
    """A column for each field of the answers, typed by the task's schema, so that every part has
    the same columns."""

    suffix = ".parquet"

    def __init__(self, answer: type[BaseModel], keep: Sequence[str]) -> None:
        import pyarrow

        self._keep = tuple(keep)
        fields = answer.model_fields
        self._answer = {name: _arrow_type(field.annotation) for name, field in fields.items()}
        self._whole = not self._answer
        row_id, row, *errors = OWN_COLUMNS
        columns = {row_id: pyarrow.string(), row: pyarrow.int64()}
        columns |= dict.fromkeys(self._keep, pyarrow.string())
        columns |= {WHOLE: pyarrow.string()} if self._whole else self._answer
        columns |= dict.fromkeys(errors, pyarrow.string())
        self._schema = pyarrow.schema(columns)

    def write(self, path: Path, rows: Sequence[OutputRow]) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = [
            pyarrow.array([self._cell(row, name) for row in rows], type)
            for name, type in zip(self._schema.names, self._schema.types, strict=True)
        ]
        table = pyarrow.Table.from_arrays(columns, schema=self._schema)
        pyarrow.parquet.write_table(table, path)

    def read(self, path: AnyPath) -> list[OutputRow]:
        rows = read_output(path)
        for row in rows if self._whole else ():
            row |= json.loads(row.pop(WHOLE, "{}"))
        return rows

    def _cell(self, row: OutputRow, name: str) -> Any:
        if self._whole and name == WHOLE:
            own_columns = {*OWN_COLUMNS, *self._keep}
            answer = {key: value for key, value in row.items() if key not in own_columns}
            text = json.dumps(answer, ensure_ascii=False, default=as_text) if answer else None
            return _as_arrow(text, self._schema.field(name).type)
        return _as_arrow(row.get(name), self._schema.field(name).type)


def read_output(path: AnyPath) -> list[OutputRow]:
    """Return the rows of a part that was written; columns without a value are left out."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    with parquet_file(path) as file:
        rows = file.read().to_pylist(maps_as_pydicts="strict")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def read_spool(path: Path) -> Iterator[bytes]:
    """Yield the lines that the driver wrote, without their ends."""
    with path.open("rb") as file:
        for line in file:
            yield line.rstrip(b"\n")


def read_parquet(
    path: AnyPath, row_group: int, start: int, count: int, names: frozenset[str], id: str
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield columns and an empty text for ``count`` rows of a row group, from ``start`` on; of a
    row with a cell that cannot be read its other columns, and why.

    Of a row group that cannot be read on, its other rows come with what of their columns is known,
    the id where that column can be read, and why.
    """
    import pyarrow

    rows_read = 0
    try:
        with parquet_file(path) as file:
            columns = [name for name in file.schema_arrow.names if name in names]
            batches = file.iter_batches(STREAMED_ROWS, [row_group], columns)
            for row in _rows_from(batches, start, count):
                rows_read += 1
                yield row
    except (OSError, pyarrow.ArrowException) as error:
        why = f"row group {row_group} cannot be read: {error}"
        for row_id in _ids(path, row_group, start, count, id)[rows_read:]:
            yield {id: row_id}, why


def _rows_from(
    batches: Iterator[Any], start: int, count: int
) -> Iterator[tuple[Mapping[str, Any], str]]:
    at = 0
    for batch in batches:
        first, last = max(start - at, 0), min(start + count - at, batch.num_rows)
        at += batch.num_rows
        if first < last:
            yield from _rows_of(batch.slice(first, last - first))
        if at >= start + count:
            return


def _rows_of(batch: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        rows = batch.to_pylist()
    except UNREADABLE_CELL:
        for place in range(batch.num_rows):
            yield _cells(batch.slice(place, 1))
        return
    yield from ((row, "") for row in rows)


def _cells(row: Any) -> tuple[Mapping[str, Any], str]:
    """Return the columns of one row that can be read, and why another cannot, empty where all
    can."""
    values, why = {}, ""
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except UNREADABLE_CELL as error:
            why = why or f"{name} cannot be read: {error}"
    return values, why


def _ids(path: AnyPath, row_group: int, start: int, count: int, id: str) -> list[Any]:
    """Return the ids alone; None for each where they cannot be read either."""
    import pyarrow

    try:
        with parquet_file(path) as file:
            if id in file.schema_arrow.names:
                table = file.read_row_group(row_group, [id])
                return list(table.column(id).slice(start, count).to_pylist())
    except (OSError, pyarrow.ArrowException, *UNREADABLE_CELL):
        pass
    return [None] * count


def _arrow_type(annotation: Any) -> "pyarrow.DataType":
    """Return the column type of a pydantic field; what has none is written as JSON text."""
    import pyarrow

    simple = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    simple[bool] = pyarrow.bool_()
    if annotation in simple:
        return simple[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return pyarrow.struct({name: _arrow_type(field.annotation) for name, field in fields})
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list:
        return pyarrow.list_(_arrow_type(arguments[0]))
    if origin in (dict, Mapping) and arguments[0] is str:
        return pyarrow.map_(pyarrow.string(), _arrow_type(arguments[1]))
    if origin in (Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        if len(kinds) == 1:
            return _arrow_type(kinds[0])
    if origin is Literal and all(isinstance(value, str) for value in arguments):
        return pyarrow.string()
    return pyarrow.string()


def _as_arrow(value: Any, type: "pyarrow.DataType") -> Any:
    """Return a value as its column takes it: maps as pairs, text where the column is text."""
    import pyarrow

    if value is None:
        return None
    if pyarrow.types.is_string(type):
        if not isinstance(value, str):
            return json.dumps(value, default=as_text)
        return value.encode("utf-8", "replace").decode()  # no halves of surrogate pairs
    if pyarrow.types.is_map(type):
        return [(key, _as_arrow(item, type.item_type)) for key, item in value.items()]
    if pyarrow.types.is_list(type):
        return [_as_arrow(item, type.value_type) for item in value]
    if pyarrow.types.is_struct(type):
        return {field.name: _as_arrow(value.get(field.name), field.type) for field in type}
    return value


def as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
