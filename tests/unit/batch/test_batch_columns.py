"""A row's columns become a request; whatever a line holds, it harms no other row."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlserve.batch.rows import read_lines
from vlserve.batch.sources import find_sources
from vlserve.runtime.errors import ErrorCode
from vlserve_worker.batch_columns import Columns, InputRow
from vlserve_worker.batch_files import read_parquet
from vlserve_worker.storage import AnyPath, ObjectPath, ObjectState

COLUMNS = Columns("id", {}, ("label",), ["image", "text"])
NAMES = st.sampled_from(["columns", "files", "error", "id", "label", "text", "image_path"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def row_of(line: bytes, file: AnyPath = Path("/covers/in.jsonl")) -> InputRow:
    (row,) = COLUMNS.rows([line], 7, file)
    return row


@pytest.mark.parametrize(
    "own",
    [
        {"columns": "x"},
        {"columns": {"text": "x"}},
        {"files": ["a.jpg"]},
        {"files": {"image": ["/etc/passwd", 0, -1]}},
        {"error": "x"},
        {"columns": {}, "files": {}, "error": ""},
    ],
)
def test_an_inputs_line_is_never_taken_for_the_drivers(
    own: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(f" \t{json.dumps(own)}\n", encoding="utf-8")
    (source,) = find_sources([str(file)])
    (line,) = read_lines(source)
    row = row_of(line)
    assert (row.fields, row.files, row.error) == ({}, {}, None)
    kept = Columns("id", {}, tuple(own), ["text"]).rows([line], 0, tmp_path)
    assert next(kept).kept == own


@given(JSON)
def test_any_json_is_one_row(value: object) -> None:
    row = row_of(json.dumps(value).encode())
    assert row.row == 7
    if row.error:
        assert row.error.code is ErrorCode.BODY_UNREADABLE and row.error.message


@pytest.mark.parametrize("path", ["s3://", "s3://key@bucket/a.jpg"])
def test_a_path_that_names_no_object_is_its_rows_error(path: str) -> None:
    line = {"id": "v1", "image_path": path, "label": "cat"}
    file = ObjectPath("media/in.jsonl", state=ObjectState(1, 0))
    row = row_of(json.dumps(line).encode(), file)
    assert (row.id, row.kept) == ("v1", {"label": "cat"})
    assert row.error is not None and row.error.message.startswith("the row cannot be read: s3://")


def _latin_1() -> pyarrow.Array:
    texts = pyarrow.array([b"a", b"\xe9", b"b"]).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, texts)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (_latin_1(), "'utf-8' codec can't decode byte 0xe9"),
        (pyarrow.array([0, 10**15, 1], pyarrow.timestamp("s")), "too large"),
    ],
)
def test_a_cell_that_cannot_be_read_is_its_rows_error(
    cells: pyarrow.Array, why: str, tmp_path: Path
) -> None:
    table = pyarrow.table({"id": ["x", "y", "z"], "label": ["a", "b", "c"], "text": cells})
    file = tmp_path / "cells.parquet"
    pyarrow.parquet.write_table(table, file)
    lines = read_parquet(file, 0, 0, 3, COLUMNS.parquet_names, "id")
    rows = list(COLUMNS.rows(lines, 0, file))
    assert [(row.id, row.kept["label"]) for row in rows] == [("x", "a"), ("y", "b"), ("z", "c")]
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert rows[1].error and rows[1].error.message.startswith("text cannot be read: ")
    assert why in rows[1].error.message
