"""A job over a folder: whether its files are still those of the job, and which are none of it."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.batch_rows import output, rows_of, write_jsonl
from vlserve.batch.rows import read_lines
from vlserve.batch.sources import Kind, Source, changed, find_sources
from vlserve.errors import BatchError, DataError
from vlserve_worker.storage import ObjectPath, ObjectState

Run = Callable[..., Mapping[str, Any]]
ROWS = 40


def texts(folder: Path, count: int = ROWS) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"v{number:02}.txt").write_text("abc", encoding="utf-8")
    return folder


def add(folder: Path) -> None:
    (folder / "v00a.txt").write_text("abc", encoding="utf-8")


def remove(folder: Path) -> None:
    (folder / "v07.txt").unlink()


def replace(folder: Path) -> None:
    new = folder / ".new"
    new.write_text("xyz", encoding="utf-8")
    os.utime(new, ns=(0, 10**18))
    new.replace(folder / "v07.txt")


def rename(folder: Path) -> None:
    (folder / "v07.txt").rename(folder / "v99.txt")


@pytest.mark.parametrize("change", [add, remove, replace, rename])
def test_a_folder_whose_files_are_others_has_changed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = texts(tmp_path / "in", 10)
    before = find_sources([str(folder)])
    assert list(changed(before, find_sources([str(folder)]))) == []
    change(folder)
    now = find_sources([str(folder)])
    assert list(changed(before, now)) == [f"{folder} has changed since the job began"]


def test_files_of_no_row_are_none_of_a_folders(tmp_path: Path) -> None:
    folder = texts(tmp_path / "in", 10)
    before = find_sources([str(folder)])
    for name in (".hidden.txt", "all.jsonl", "README.md"):
        (folder / name).write_text("abc", encoding="utf-8")
    assert list(changed(before, find_sources([str(folder)]))) == []


def test_a_folder_of_a_job_that_an_earlier_version_began_is_taken(tmp_path: Path) -> None:
    folder = texts(tmp_path / "in", 10)
    line = json.dumps({"path": str(folder), "kind": "folder", "size": 0, "changed_ns": 0})
    before = Source.model_validate_json(line)
    assert list(changed([before], find_sources([str(folder)]))) == []


def object_source(changed_ns: int, size: int = 3) -> Source:
    path = ObjectPath("media/in.jsonl", state=ObjectState(size, changed_ns))
    return Source(path=path, kind=Kind.JSONL, size=size, changed_ns=changed_ns)


def test_an_objects_time_counts_in_whole_seconds() -> None:
    before = object_source(7_000_000_000)
    assert list(changed([before], [object_source(7_123_000_000)])) == []
    for other in (object_source(8_000_000_000), object_source(7_000_000_000, 4)):
        assert list(changed([before], [other])) == [
            f"{before.path} has changed since the job began"
        ]


def test_a_job_over_a_folder_that_has_changed_is_refused(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(ROWS):
        (folder / f"v{number:02}.jpg").write_bytes((covers / "cover0.jpg").read_bytes())
        (folder / f"v{number:02}.txt").write_text("abc", encoding="utf-8")
    out = folder / "out"  # below its own input
    assert run(folder, out=out, shard="0/2")["unfinished_parts"] == 1
    report = run(folder, out=out)
    assert (report["rows"], report["parts_of_earlier_runs"]) == (ROWS, 1)
    assert run(folder, out=out)["rows"] == ROWS
    assert [row["id"] for row in output(out)] == [f"v{number:02}" for number in range(ROWS)]
    (source,) = find_sources([str(folder)])
    assert len(list(read_lines(source))) == ROWS
    remove(folder)
    add(folder)
    for again in (False, True):
        with pytest.raises(BatchError, match="in has changed since the job began"):
            run(folder, out=out, retry_errors=again)


@pytest.mark.parametrize("pattern", ["*", "**/*.jsonl"])
def test_a_glob_does_not_mean_the_jobs_own_output(
    covers: Path, run: Run, tmp_path: Path, pattern: str
) -> None:
    (tmp_path / "data").mkdir()
    rows = [row | {"img": str(covers / row["img"])} for row in rows_of(3)]
    write_jsonl(tmp_path / "data" / "in.jsonl", rows)
    out = tmp_path / "data" / "out"
    for earlier_parts in (0, 1):
        report = run(tmp_path / "data" / pattern, out=out)
        assert (report["rows"], report["parts_of_earlier_runs"]) == (3, earlier_parts)


def test_the_outputs_folder_is_no_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="is the folder of the output"):
        run(tmp_path / "in", out=tmp_path / "in")


def test_a_glob_of_objects_does_not_mean_the_jobs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("media/a.jsonl", "media/out/part-00000.jsonl", "media/outer.jsonl")
    objects = [ObjectPath(key, state=ObjectState(3, 0)) for key in keys]
    monkeypatch.setattr(ObjectPath, "glob", lambda path, pattern: iter(objects))
    sources = find_sources(["s3://media/**/*.jsonl"], ObjectPath("media/out"))
    assert [str(source.path) for source in sources] == [
        "s3://media/a.jsonl",
        "s3://media/outer.jsonl",
    ]
