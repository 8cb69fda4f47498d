"""Offline jobs that told this control service where their output is: how far they are."""

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vlserve.batch.job import JobFolder, JobRecord, Receipt, total
from vlserve.control.store.ledger import Ledger, now

MOST_JOBS = 50
"""The oldest of more are forgotten."""
MOST_PARTS = 5000
"""Of a job; the receipts of more are not read."""
_RECENT_PARTS = 20

JobState = Literal["running", "finished", "stopped", "gone"]
"""``stopped``: nobody works at it, and it is not finished; ``gone``: its folder holds no job."""


@dataclass(frozen=True)
class BatchJob:
    """One job. ``share``: of its input that is done, from 0 to 1; None where it is not known.
    ``errors``: code -> failed rows. ``rows_per_s``: over the parts that ended last."""

    out: str
    state: JobState
    model: str = ""
    version: int = 0
    task: str = ""
    parts: int = 0
    rows: int = 0
    failed: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    share: float | None = None
    rows_per_s: float | None = None
    left_s: float | None = None
    """At the rate so far; None while it does not run."""


class BatchJobs:
    """Thread-safe. The ledger keeps the paths."""

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database

    def announce(self, out: Path) -> None:
        """Remember a job by the folder of its output. LedgerUnwritable."""
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO batch_jobs (out, announced_at) VALUES (?, ?)",
                *(str(out), now()),
            )
            self._database.execute(
                "DELETE FROM batch_jobs WHERE out NOT IN "
                "(SELECT out FROM batch_jobs ORDER BY announced_at DESC, rowid DESC LIMIT ?)",
                MOST_JOBS,
            )

    def jobs(self) -> list[BatchJob]:
        """Return what is known of each job, the last that was announced first."""
        rows = self._database.query(
            "SELECT out FROM batch_jobs ORDER BY announced_at DESC, rowid DESC"
        )
        return [look_at(Path(row[0]), time.time()) for row in rows]


def look_at(out: Path, at: float) -> BatchJob:
    """Return what the files of a job say at ``at`` (Unix time, s)."""
    folder = JobFolder(out)
    try:
        record = JobRecord.model_validate_json(folder.record_file.read_bytes())
        receipts = folder.receipts(MOST_PARTS)
    except (OSError, ValidationError):
        return BatchJob(str(out), "gone")
    state: JobState = "running" if _is_locked(folder.lock_file) else "stopped"
    if state == "stopped" and (out / "report.json").exists():
        state = "finished"
    progress = folder.progress()
    sums = total(receipts)
    left_s = None
    if progress is not None and progress.left_s is not None and state == "running":
        left_s = max(0.0, progress.left_s - (at - progress.at))
    return BatchJob(
        out=str(out),
        state=state,
        model=record.model,
        version=record.version,
        task=record.task,
        parts=sums["parts"],
        rows=sums["rows"],
        failed=sums["failed"],
        errors=sums["errors"],
        share=1.0 if state == "finished" else progress.share if progress else None,
        rows_per_s=rate(list(receipts.values())),
        left_s=left_s,
    )


def rate(receipts: Sequence[Receipt]) -> float | None:
    """Return the rows a second of the parts that ended last; None where their ends are not
    known."""
    timed = sorted((each for each in receipts if each.ended_at), key=lambda each: each.ended_at)
    recent = timed[-_RECENT_PARTS:]
    if not recent:
        return None
    began_at = min(each.ended_at - each.seconds for each in recent)
    return sum(each.rows for each in recent) / max(recent[-1].ended_at - began_at, 1e-6)


def _is_locked(file: Path) -> bool:
    """Return whether a driver or a worker holds the job's lock."""
    try:
        descriptor = os.open(file, os.O_RDWR)  # NFS locks no file that is open to read alone
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(descriptor)
