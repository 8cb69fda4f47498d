"""The worker's program opens an archive, and so an index, once for all parts; rows of like length
share a batch."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.batch_rows import output, rows_of, write_jsonl
from support.echo_archive import pack_echo_dual, write_images, write_lines
from vlserve.exporter.pack import HANDLERS_DIR
from vlserve.retrieval.build import build_index
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve_worker import batch
from vlserve_worker.batch_order import Order

Work = Callable[[Path, Sequence[list[dict[str, Any]]]], list[dict[str, Any]]]
ITEMS = 5


@pytest.fixture
def work(covers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Run the program in this process, over parts, into tmp_path/out; returns what it said."""

    def run_parts(folder: Path, parts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        state = tmp_path / "out" / ".vlserve"
        for name in ("receipts", "careful"):
            (state / name).mkdir(parents=True)
        orders: list[Order] = []
        first = 0
        for number, rows in enumerate(parts):
            spool = write_jsonl(tmp_path / f"{number}.jsonl", rows)
            orders.append(Order(number, first, str(covers / "in.jsonl"), str(spool)))
            first += len(rows)
        lines = b"".join(json.dumps(asdict(order)).encode() + b"\n" for order in orders)
        options: dict[str, Any] = {
            "id": "id",
            "columns": {},
            "keep": [],
            "frame": "first",
            "format": "jsonl",
        }
        options |= {"out": str(tmp_path / "out"), "batch": 8, "threads": 1}
        read_end, write_end = os.pipe()
        monkeypatch.setattr(
            sys, "argv", ["batch", str(folder), json.dumps(options), str(write_end)]
        )
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
        batch.main()
        with os.fdopen(read_end, "rb") as replies:
            return [json.loads(line) for line in replies]

    monkeypatch.setattr(batch, "open_folder", lambda folder, threads, **_: open_folder(folder))
    return run_parts


def test_an_archive_is_opened_once_for_all_parts(
    work: Work, echo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def record_open(folder: Path, threads: int, **_: Any) -> Pipeline:
        folders.append(folder)
        return open_folder(folder, threads)

    monkeypatch.setattr(batch, "open_folder", record_open)
    replies = work(echo_folder, [rows_of(4)] * 3)
    assert folders == [echo_folder]
    assert replies[0] == {"ready": True}
    assert [reply["receipt"]["rows"] for reply in replies[1:] if "receipt" in reply] == [4, 4, 4]


@pytest.fixture
def opened_files() -> Iterator[list[str]]:
    """Every file that this process opens, by Python's own count."""
    files: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # which nothing can take away again
        if listening and event == "open" and isinstance(arguments[0], str | os.PathLike):
            files.append(os.fspath(arguments[0]))

    sys.addaudithook(hook)
    yield files
    listening.clear()


def test_an_index_is_opened_once_for_all_parts(
    work: Work, tmp_path: Path, opened_files: list[str]
) -> None:
    items = write_lines(tmp_path / "items.jsonl", write_images(tmp_path, ITEMS))
    index = build_index(pack_echo_dual(tmp_path), items, tmp_path / "index", handlers=HANDLERS_DIR)
    folder = tmp_path / "unpacked"
    unpack_archive(index.path, folder)
    opened_files.clear()
    open_folder(folder)
    names = sorted(name for name in opened_files if "/assets/index/" in name)
    opened_files.clear()
    queries = [{"id": f"q{n}", "text": "abc de"[: 1 + n], "top_k": 2} for n in range(4)]
    replies = work(folder, [queries] * 3)
    assert [reply["receipt"]["errors"] for reply in replies[1:]] == [{}, {}, {}]
    assert {"ids.json", "embedding.npy"} <= {Path(name).name for name in names}
    assert sorted(name for name in opened_files if "/assets/index/" in name) == names
    results = output(tmp_path / "out")
    assert [row["id"] for row in results] == [f"q{n}" for n in range(4)] * 3
    assert all(len(row["results"]) == 2 for row in results)


def test_rows_of_like_length_share_a_batch(
    work: Work, echo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    run = Pipeline.run

    def record_run(pipeline: Pipeline, items: Sequence[Any]) -> Any:
        batches.append([len(item.fields["text"]) for item in items])
        return run(pipeline, items)

    monkeypatch.setattr(Pipeline, "run", record_run)
    rows = [row | {"text": "a" * (n * 7 % 64)} for n, row in enumerate(rows_of(64))]
    work(echo_folder, [rows])
    assert batches == [list(range(start, start + 8)) for start in range(0, 64, 8)]
    assert [row["row"] for row in output(tmp_path / "out")] == list(range(64))
