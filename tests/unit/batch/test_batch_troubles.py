"""What goes wrong beside the rows: files that cannot be read, disks that are full, workers and
drivers that are killed."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from support.batch_rows import CRASH, output, rows_of, write_jsonl
from support.small_disk import fill, small_disk
from vlserve.batch.run import KILLED, Job
from vlserve.batch.workers import Crew
from vlserve.errors import BatchError, DataError

Run = Callable[..., Mapping[str, Any]]


def test_bad_cells_of_parquet_are_errors_of_their_rows(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    good = (covers / "cover0.jpg").read_bytes()
    images = [good, None, b"", b"\xff\xd8 no image", bomb.getvalue(), good]
    rows = [{"id": n, "image": image, "text": "a"} for n, image in enumerate(images)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "cells.parquet")
    run(tmp_path / "cells.parquet")
    results = output(tmp_path / "out")
    assert [row["id"] for row in results] == [str(n) for n in range(6)]
    assert [row.get("error_code") for row in results] == [
        None,
        "field_invalid",
        "image_unreadable",
        "image_unreadable",
        "image_too_large",
        None,
    ]


def test_a_column_of_a_wrong_type_is_an_error_of_each_row(run: Run, tmp_path: Path) -> None:
    rows = [{"id": n, "image": n, "text": [n]} for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "types.parquet")
    assert run(tmp_path / "types.parquet")["failed"] == 3


@pytest.mark.parametrize("name", ["empty.parquet", "cut.parquet", "empty.tar"])
def test_a_file_that_cannot_be_read_is_one_line(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and no end" if name.startswith("cut") else b"")
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        run(tmp_path / name)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv"])
def test_an_empty_file_has_no_rows(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert run(tmp_path / name)["rows"] == 0


def test_a_file_that_is_absent_is_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: there is no such file"):
        run(tmp_path / "absent.jsonl")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_a_job_that_goes_on_later(covers: Path, run: Run, tmp_path: Path) -> None:
    file = write_jsonl(covers / "full.jsonl", rows_of(300))
    with small_disk(tmp_path / "disk", "4m") as disk:
        (disk / "out" / ".vlserve").mkdir(parents=True)
        filler = fill(disk)
        with pytest.raises(BatchError, match="No space left on device"):
            run(file, out=disk / "out")
        filler.unlink()
        assert run(file, out=disk / "out", workers=2)["rows"] == 300
        assert [row["row"] for row in output(disk / "out")] == list(range(300))


def test_a_disk_that_fills_up_keeps_what_is_finished(
    covers: Path, run: Run, tmp_path: Path
) -> None:
    rows = [row | {"note": "x" * 2000} for row in rows_of(2500)]
    file = write_jsonl(covers / "filling.jsonl", rows)
    with small_disk(tmp_path / "disk", "3m") as disk:
        with pytest.raises(BatchError, match="the same command goes on"):
            run(file, out=disk / "out", keep=("note",))
        assert 0 < len(list((disk / "out").glob("part-*.jsonl"))) < 9
        assert not list((disk / "out").glob(".part-*"))


def test_a_worker_that_is_killed_while_idle_is_replaced(
    covers: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_out, killed_workers = Job._hand_out, list[int]()

    def kill_first(job: Job, crew: Crew, work: Any) -> None:
        if work.idle and not killed_workers:
            killed_workers.append(work.idle[0])
            crew.workers[killed_workers[0]]._process.kill()
            crew.workers[killed_workers[0]]._process.wait()
            until = time.monotonic() + 60
            while crew.workers.get(killed_workers[0]) and time.monotonic() < until:
                for reply in crew.replies(0.1):
                    job._hear(crew, work, reply)
        hand_out(job, crew, work)

    monkeypatch.setattr(Job, "_hand_out", kill_first)
    assert run(write_jsonl(covers / "idle.jsonl", rows_of(50)), workers=2)["failed"] == 0
    assert killed_workers and [row["row"] for row in output(tmp_path / "out")] == list(range(50))


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each start of a worker of this machine."""
    start_one, calls = Crew.start_one, list[int]()
    monkeypatch.setattr(Crew, "start_one", lambda crew: (calls.append(1), start_one(crew)))
    return calls


def test_a_row_is_blamed_when_its_worker_ends_twice(
    covers: Path, run: Run, tmp_path: Path, starts: list[int]
) -> None:
    file = write_jsonl(covers / "twice.jsonl", rows_of(4, row2={"text": CRASH}))
    run(file)
    assert len(starts) == 1 + 3  # one for the part; after the part, and after the row alone, twice
    assert [row.get("error_code") for row in output(tmp_path / "out")] == [None, None, KILLED, None]


def test_no_more_workers_start_than_there_are_parts(
    covers: Path, run: Run, starts: list[int]
) -> None:
    file = write_jsonl(covers / "few.jsonl", rows_of(4))
    assert run(file, workers=3)["rows"] == 4
    assert len(starts) == 1
    assert run(file, workers=3)["parts_of_earlier_runs"] == 1
    assert len(starts) == 1  # nothing is left to do


def test_no_job_begins_while_a_killed_drivers_worker_writes(
    covers: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_jsonl(covers / "locked.jsonl", rows_of(8)), tmp_path / "out"
    script = Path(sys.executable).with_name("vlserve")
    options = ["--input", str(file), "--output", str(out), "--workers", "1"]
    driver = subprocess.Popen([str(script), "batch", str(covers / "tagger-1.mar"), *options])
    until = time.monotonic() + 60
    while not (workers := psutil.Process(driver.pid).children()):
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.01)
    workers[0].suspend()
    try:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        with monkeypatch.context() as hasty:
            hasty.setattr("vlserve.batch.locks.WAIT_FOR_LOCK_S", 0.2)
            with pytest.raises(BatchError, match="another job writes to"):
                run(file)
    finally:
        workers[0].resume()
    workers[0].wait(60)
    assert run(file)["rows"] == 8
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["rows"] == 8
