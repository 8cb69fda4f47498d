"""How far offline jobs are, from what lies in their folders."""

from pathlib import Path

import pytest

from support.batch_rows import RECORD
from vlserve.batch.job import JobFolder, Progress, Receipt
from vlserve.control import batch_jobs
from vlserve.control.batch_jobs import BatchJobs, look_at
from vlserve.control.store.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job of which two parts of 50 rows are done, in 10 s together; three rows failed."""
    job = JobFolder(tmp_path / "out")
    with job.locked():
        job.begin(RECORD)
        job.tell_progress(Progress(share=0.25, left_s=30.0, at=1000.0))
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
    return job


def test_a_job_that_runs_says_how_long_it_takes(folder: JobFolder, tmp_path: Path) -> None:
    with folder.locked():
        running = look_at(tmp_path / "out", 1010.0)
    assert (running.state, running.share, running.left_s) == ("running", 0.25, 20.0)
    assert (running.rows, running.failed, running.errors) == (100, 3, {"image_unreadable": 3})
    assert running.rows_per_s == pytest.approx(10.0)
    assert (running.model, running.version, running.task) == ("tagger", 1, "tag")


def test_a_job_is_stopped_finished_or_gone(folder: JobFolder, tmp_path: Path) -> None:
    stopped = look_at(tmp_path / "out", 1010.0)
    assert (stopped.state, stopped.share, stopped.left_s) == ("stopped", 0.25, None)
    (tmp_path / "out" / "report.json").write_text("{}", encoding="utf-8")
    finished = look_at(tmp_path / "out", 1010.0)
    assert (finished.state, finished.share) == ("finished", 1.0)
    assert look_at(tmp_path / "nothing", 1010.0).state == "gone"
    (tmp_path / "out" / ".vlserve" / "job.json").write_text("{}", encoding="utf-8")
    assert look_at(tmp_path / "out", 1010.0).state == "gone"


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
