"""How far offline jobs are, from what lies in their folders."""

import json
import os
import time
from pathlib import Path

import pytest

from support.batch_rows import RECORD
from vlserve.batch import job
from vlserve.batch.job import JobFolder, Progress, Receipt
from vlserve.control import batch_jobs
from vlserve.control.batch_jobs import BatchJobs, look_at
from vlserve.control.store.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job of which two parts of 50 rows are done, in 10 s together; three rows failed."""
    job_folder = JobFolder(tmp_path / "out")
    with job_folder.locked():
        job_folder.begin(RECORD)
        job_folder.tell_progress(Progress(share=0.25, left_s=30.0, at=1000.0))
    for part in (0, 1):
        receipt = Receipt(
            part=part,
            first_row=50 * part,
            rows=50,
            errors={"image_unreadable": 1 + part},
            labels={},
            seconds=5.0,
            cpu_seconds=5.0,
            ended_at=1000.0 + 5 * part,
        )
        receipts = tmp_path / "out" / ".vlserve" / "receipts"
        (receipts / f"{part:05}.json").write_text(receipt.model_dump_json(), encoding="utf-8")
    return job_folder


def test_a_job_that_runs_says_how_long_it_takes(folder: JobFolder, tmp_path: Path) -> None:
    with folder.locked():
        status = look_at(tmp_path / "out", 1010.0)
    assert (status.state, status.share, status.left_s) == ("running", 0.25, 20.0)
    assert (status.rows, status.failed, status.errors) == (100, 3, {"image_unreadable": 3})
    assert status.rows_per_s == pytest.approx(10.0)
    assert (status.model, status.version, status.task) == ("tagger", 1, "tag")


def test_a_job_is_stopped_finished_or_gone(folder: JobFolder, tmp_path: Path) -> None:
    before = look_at(tmp_path / "out", 1010.0)
    assert (before.state, before.share, before.left_s) == ("stopped", 0.25, None)
    (tmp_path / "out" / "report.json").write_text("{}", encoding="utf-8")
    after = look_at(tmp_path / "out", 1010.0)
    assert (after.state, after.share) == ("finished", 1.0)
    assert look_at(tmp_path / "nothing", 1010.0).state == "gone"
    (tmp_path / "out" / ".vlserve" / "job.json").write_text("{}", encoding="utf-8")
    assert look_at(tmp_path / "out", 1010.0).state == "gone"


def test_receipts_are_read_again_only_where_one_has_come(
    folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts = tmp_path / "out" / ".vlserve" / "receipts"
    calls: list[int | None] = []
    whole = JobFolder.receipts
    monkeypatch.setattr(
        JobFolder, "receipts", lambda job, most=None: calls.append(most) or whole(job, most)
    )
    with Ledger(tmp_path / "store") as ledger:
        jobs = BatchJobs(ledger)
        jobs.announce(tmp_path / "out")
        assert [jobs.jobs()[0].rows for _ in range(2)] == [100, 100]
        assert len(calls) == 2  # the folder has just changed
        os.utime(receipts, ns=(0, time.time_ns() - 10**10))
        assert [jobs.jobs()[0].rows for _ in range(3)] == [100, 100, 100]
        assert len(calls) == 3
        third = json.loads((receipts / "00001.json").read_text(encoding="utf-8")) | {"part": 2}
        (receipts / "00002.json").write_text(json.dumps(third), encoding="utf-8")
        assert jobs.jobs()[0].rows == 150
        assert len(calls) == 4


@pytest.mark.parametrize("name", ["job.json", "progress.json", "receipts/00000.json"])
@pytest.mark.parametrize("what", ["pipe", "huge"])
def test_what_is_no_file_of_a_job_is_not_read(
    folder: JobFolder, tmp_path: Path, name: str, what: str
) -> None:
    """The folder may be anybody's: a pipe would hold the thread that looks for ever."""
    file = tmp_path / "out" / ".vlserve" / name
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    else:
        file.touch()
        os.truncate(file, job.MOST_BYTES + 1)  # no byte of it is on the disk
    status = look_at(tmp_path / "out", 1010.0)
    assert (status.state, status.share) == (
        ("stopped", None) if "progress" in name else ("gone", None)
    )


def test_the_newest_jobs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_jobs, "MOST_JOBS", 2)
    times = iter(f"2026-11-29T00:00:0{second}" for second in range(9))
    monkeypatch.setattr(batch_jobs, "now", lambda: next(times))
    with Ledger(tmp_path) as ledger:
        jobs = BatchJobs(ledger)
        for name in ("a", "b", "c", "b"):
            jobs.announce(tmp_path / name)
        assert [Path(job.out).name for job in jobs.jobs()] == ["b", "c"]
        assert all(job.state == "gone" for job in jobs.jobs())
