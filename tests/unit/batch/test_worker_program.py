"""The worker's program opens an archive, and so an index of items, once for all parts."""

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.batch_rows import rows_of, write_jsonl
from vlserve.runtime.folder import open_folder
from vlserve_worker import batch
from vlserve_worker.batch_order import Order


def test_an_archive_is_opened_once_for_all_parts(
    covers: Path, echo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(folder: Path, threads: int, **_: Any) -> Any:
        opened.append(folder)
        return open_folder(folder, threads)

    state = tmp_path / "out" / ".vlserve"
    for folder in ("receipts", "careful"):
        (state / folder).mkdir(parents=True)
    orders = []
    for part in range(3):
        spool = write_jsonl(tmp_path / f"{part}.jsonl", rows_of(4))
        orders.append(Order(part, 4 * part, str(covers / "in.jsonl"), str(spool)))
    lines = b"".join(json.dumps(asdict(order)).encode() + b"\n" for order in orders)
    options = {"id": "id", "columns": {}, "keep": [], "frame": "first", "format": "jsonl"}
    options |= {"out": str(tmp_path / "out"), "batch": 8, "threads": 1}
    reading, writing = os.pipe()
    monkeypatch.setattr(batch, "open_folder", counted)
    monkeypatch.setattr(sys, "argv", ["batch", str(echo_folder), json.dumps(options), str(writing)])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    batch.main()
    with os.fdopen(reading, "rb") as replies:
        said = [json.loads(line) for line in replies]
    assert opened == [echo_folder]
    assert said[0] == {"ready": True}
    assert [one["receipt"]["rows"] for one in said[1:] if "receipt" in one] == [4, 4, 4]
