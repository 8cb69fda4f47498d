"""Offline jobs that told this control service where their output is: how far they are."""

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vlserve.batch.job import JobFolder, Receipt, total
from vlserve.control.store.ledger import Ledger, now

MOST_JOBS = 50
"""The oldest of more are forgotten."""
MOST_PARTS = 5000
"""Of a job; the receipts of more are not read."""
_RECENT_PARTS = 20
_MTIME_STEP_NS = 2 * 10**9
"""Two changes of a folder that are further apart have different times, on any file system."""

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


@dataclass(frozen=True)
class _Sums:
    """Of a job's receipts, as they were when their folder looked like ``mark``."""

    mark: tuple[int, int]
    total: Mapping[str, Any]
    rows_per_s: float | None


class BatchJobs:
    """Thread-safe. The ledger keeps the paths. Receipts are read again where one has come since."""

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database
        self._sums: dict[Path, _Sums] = {}

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
        outs = [Path(row[0]) for row in rows]
        self._sums = {out: sums for out, sums in self._sums.items() if out in outs}
        return [look_at(out, time.time(), self._sums) for out in outs]


def look_at(out: Path, at: float, cache: dict[Path, _Sums] | None = None) -> BatchJob:
    """Return what the files of a job say at ``at`` (Unix time, s). ``cache``: sums of jobs, which
    are read and kept there."""
    folder = JobFolder(out)
    try:
        record = folder.record()
        sums = _sums_of(folder, out, {} if cache is None else cache)
    except (OSError, ValidationError):
        return BatchJob(str(out), "gone")
    state: JobState = "running" if _is_locked(folder.lock_file) else "stopped"
    if state == "stopped" and (out / "report.json").exists():
        state = "finished"
    progress = folder.progress()
    left_s = None
    if progress is not None and progress.left_s is not None and state == "running":
        left_s = max(0.0, progress.left_s - (at - progress.at))
    return BatchJob(
        out=str(out),
        state=state,
        model=record.model,
        version=record.version,
        task=record.task,
        parts=sums.total["parts"],
        rows=sums.total["rows"],
        failed=sums.total["failed"],
        errors=sums.total["errors"],
        share=1.0 if state == "finished" else progress.share if progress else None,
        rows_per_s=sums.rows_per_s,
        left_s=left_s,
    )


def _sums_of(folder: JobFolder, out: Path, cache: dict[Path, _Sums]) -> _Sums:
    """Return the sums of a job's receipts. Receipts are renamed into their folder, whose time
    changes then; within `_MTIME_STEP_NS` two changes may have one time, so it is read again."""
    began_ns, mark = time.time_ns(), folder.receipts_mark()
    sums = cache.get(out)
    if sums is not None and sums.mark == mark:
        return sums
    receipts = folder.receipts(MOST_PARTS)
    sums = _Sums(mark, total(receipts), rate(list(receipts.values())))
    cache.pop(out, None)
    if began_ns - mark[1] > _MTIME_STEP_NS:
        cache[out] = sums
    return sums


def rate(receipts: Sequence[Receipt]) -> float | None:
    """Return the rows a second of the parts that ended last; None where their ends are not
    known."""
    receipts = sorted((each for each in receipts if each.ended_at), key=lambda each: each.ended_at)
    recent = receipts[-_RECENT_PARTS:]
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
