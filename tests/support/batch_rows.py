"""Rows about drawn covers, and the output of jobs over them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve.batch.job import JobRecord, Options

RECORD = JobRecord(
    archive="/tagger-1.mar",
    sha256="0" * 64,
    model="tagger",
    version=1,
    task="tag",
    sources=(),
    options=Options(),
)
"""Of a job that lies in its folder and is not run."""


COVERS = 8
CRASH = "坏"
"""A title that ends its worker, where the archive has ``crash_on_id`` of it."""


def rows_of(count: int, **changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``count`` rows; ``changes``: ``row3`` -> columns that this row has otherwise."""
    rows = [
        {"id": f"v{n}", "img": f"cover{n % COVERS}.jpg", "text": "abc de"[: n % 7], "views": n}
        for n in range(count)
    ]
    for name, columns in changes.items():
        rows[int(name.removeprefix("row"))] |= columns
    return rows


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def output(out: Path) -> list[dict[str, Any]]:
    """All rows of a job's output, in its order."""
    parts = sorted(out.glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
