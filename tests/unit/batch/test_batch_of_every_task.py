"""Every task's answers as rows of an output: the same as the archive's code gives, in either
format."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from pydantic import BaseModel

from support.batch_rows import write_jsonl
from support.echo_tasks import KINDS, pipeline_of
from support.questions import questions_of
from vlserve.runtime.types import Request
from vlserve_worker.batch import PartWorker
from vlserve_worker.batch_columns import Columns
from vlserve_worker.batch_files import read_output
from vlserve_worker.batch_order import Order
from vlserve_worker.batch_videos import Covers
from vlserve_worker.video import FrameChoice


def without_none(value: Any) -> Any:
    """A column that has no value is left out of an output row."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_answers_of_their_task(kind: str, format: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    requests = [question.fields() for question in questions_of(pipeline.manifest)]
    answers = [pipeline.run([Request(fields)]).answers[0] for fields in requests]
    spool = write_jsonl(tmp_path / "spool.jsonl", requests)
    out = tmp_path / "out"
    (out / ".vlserve" / "receipts").mkdir(parents=True)
    columns = Columns("id", {}, (), list(pipeline.task.fields.model_fields))
    worker = PartWorker(pipeline, columns, Covers(FrameChoice()), out, format, batch=1)
    receipt = worker.run(Order(0, 0, str(spool), str(spool)), lambda rows: None)
    assert (receipt["rows"], receipt["errors"]) == (len(requests), {})
    rows = read_output(out / f"part-00000.{format}")
    assert [(row.pop("id"), row.pop("row")) for row in rows] == [
        (str(number), number) for number in range(len(requests))
    ]
    expected = json.loads(json.dumps([without_none(answer) for answer in answers]))
    assert [without_none(row) for row in rows] == expected
    if format == "parquet":
        schema = pyarrow.parquet.read_schema(out / "part-00000.parquet")
        assert set(pipeline.task.answer.model_fields) < set(schema.names)


@pytest.mark.parametrize("schema", [True, False])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_good_rows_are_the_same_after_errors_are_tried_again(
    format: str, schema: bool, tmp_path: Path
) -> None:
    pipeline = pipeline_of("tag", tmp_path)
    if not schema:
        pipeline.task.answer = BaseModel  # type: ignore[misc]  # as of a task that has none
    fields = questions_of(pipeline.manifest)[0].fields()
    rows = [fields | {"views": 1}, {"text": 7}, fields | {"views": 3}]
    spool = write_jsonl(tmp_path / "spool.jsonl", rows)
    out = tmp_path / "out"
    (out / ".vlserve" / "receipts").mkdir(parents=True)
    columns = Columns("id", {}, ("views",), list(pipeline.task.fields.model_fields))
    worker = PartWorker(pipeline, columns, Covers(FrameChoice()), out, format, batch=1)
    results = []
    for redo in (False, True, True):
        order = Order(0, 0, str(spool), str(spool), redo=redo)
        receipt = worker.run(order, lambda rows: None)
        results.append((read_output(out / f"part-00000.{format}"), receipt["labels"]))
        assert receipt["errors"] == {"field_invalid": 1}
    assert receipt["labels"]
    assert results[1:] == results[:1] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_column_takes_the_place_of_an_answers_field(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind, tmp_path)
    for name in pipeline.task.answer.model_fields:
        columns = Columns("id", {}, ("views", name), [])
        with pytest.raises(ValueError, match=f"^{name}: the output has {name} of its own"):
            PartWorker(pipeline, columns, Covers(FrameChoice()), tmp_path, "jsonl", batch=1)
