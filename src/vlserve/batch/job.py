"""What one job keeps in the output's folder: its record, its lock, receipts of finished parts.

OUT/part-00000.jsonl …           the output, one file a part
OUT/report.json, report.html     written at the end
OUT/.vlserve/job.json            what the job is: archive, sources, options
OUT/.vlserve/progress.json       how much of the input is done, for who watches
OUT/.vlserve/lock                held by the driver and its workers; lock-0 … by those of a shard
OUT/.vlserve/receipts/00000.json  of each finished part: counts, seconds; 00000.ids: digests of ids
OUT/.vlserve/spool, careful      lines for workers; rows that ran alone
"""

import errno
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlserve.batch.locks import LOCK, Shard, locked
from vlserve.batch.sources import Source, changed
from vlserve.errors import BatchError
from vlserve.runtime.manifest import Manifest
from vlserve_worker.batch_files import check_kept
from vlserve_worker.batch_parts import STATE, PartFiles, parts_in
from vlserve_worker.storage import AnyPath, ObjectPath, write_whole

MOST_BYTES = 64 * 2**20
"""Of one of these files."""
SCHEMA = 1
WHOLE = Shard()


class Options(BaseModel):
    """What the output depends on besides archive and input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["jsonl", "parquet"] = "jsonl"
    id: str = "id"
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Field of a request -> column, where they differ."""
    keep: tuple[str, ...] = ()
    frame: str = "first"
    """Which frame of a video, as `vlserve_worker.video.FrameChoice` reads it."""


class JobRecord(BaseModel):
    """job.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_number: Literal[1] = Field(default=1, alias="schema")
    archive: str
    sha256: str
    model: str
    version: int
    task: str
    sources: tuple[Source, ...]
    options: Options


class Receipt(BaseModel):
    """What a worker writes after a part: how many rows, errors by code, first labels of answers,
    and what it took, s."""

    model_config = ConfigDict(frozen=True)

    part: int
    first_row: int
    rows: int
    errors: Mapping[str, int]
    labels: Mapping[str, int]
    seconds: float
    cpu_seconds: float
    ended_at: float = 0.0
    """By the clock, s; 0 in receipts of earlier versions, as ``pid``."""
    pid: int = 0


class Progress(BaseModel):
    """progress.json. ``share``: of the input that is done, from 0 to 1; ``left_s``: until it is,
    at the rate so far; ``at``: by the clock, s."""

    model_config = ConfigDict(frozen=True)

    share: float
    left_s: float | None
    at: float


class JobFolder:
    """The output's folder."""

    def __init__(self, out: AnyPath) -> None:
        self.out = out
        self._state = out / STATE
        self._receipts = self._state / "receipts"
        self._local = self._state if isinstance(self._state, Path) else Path()

    @property
    def spool(self) -> Path:
        """Where lines lie that workers read: in the folder, or on this machine."""
        return self._local / "spool"

    @property
    def log(self) -> Path:
        return self._local / "workers.log"

    @contextmanager
    def locked(self, shard: Shard = WHOLE) -> Iterator[tuple[int, ...]]:
        """Hold the folder's locks, which workers inherit; yields their descriptors.

        An object storage has none: a part is one upload, and two equal jobs write the same parts.

        Raises:
            BatchError: Another job holds it, or what lies in the folder is not a job's.
        """
        self._refuse_foreign()
        if not (isinstance(self._state, Path) and isinstance(self._receipts, Path)):
            with tempfile.TemporaryDirectory(prefix="vlserve-batch-") as scratch:
                self._local = Path(scratch)
                self.spool.mkdir()
                yield ()
            return
        assert isinstance(self.out, Path)
        for folder in (self._receipts, self.spool, self._state / "careful"):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(self._state, self.out, shard) as locks:
            yield locks

    def begin(self, record: JobRecord) -> None:
        """Write the job's record; where there is one, hold it against this one.

        Raises:
            BatchError: The folder holds another job, or its input has changed.
        """
        file = self.record_file
        if not file.exists():
            write_whole(file, record.model_dump_json(by_alias=True, indent=1).encode())
            return
        try:
            before = JobRecord.model_validate_json(_whole(file))
        except ValidationError as error:
            raise BatchError(f"{file} cannot be read: choose another --output") from error
        if reasons := list(differences(before, record)):
            raise BatchError(
                f"{self.out} holds another job: {'; '.join(reasons)}. Choose another --output"
            )

    def record(self) -> JobRecord:
        """Return the job's record. OSError or ValidationError where there is none."""
        return JobRecord.model_validate_json(_whole(self.record_file))

    @property
    def record_file(self) -> AnyPath:
        return self._state / "job.json"

    @property
    def lock_file(self) -> Path:
        """The lock of a job in a folder of this machine."""
        return self._local / LOCK

    def tell_progress(self, progress: Progress) -> None:
        """Write how far the job is, into a folder of this machine."""
        if isinstance(self._state, Path):
            write_whole(self._state / "progress.json", progress.model_dump_json().encode())

    def progress(self) -> Progress | None:
        """Return how far the job is; None where it did not say."""
        file: AnyPath = self._state / "progress.json"
        try:
            return Progress.model_validate_json(_whole(file))
        except (OSError, ValidationError):
            return None

    def receipts(self, most: int | None = None) -> dict[int, Receipt]:
        """Return what is finished, by part; of ``most`` parts at the most."""
        files: Iterable[AnyPath] = self._receipts.glob("*.json")
        receipts = (Receipt.model_validate_json(_whole(file)) for file in islice(files, most))
        by_part = {receipt.part: receipt for receipt in receipts}
        if isinstance(self.out, ObjectPath):  # where the part is its own receipt
            parts = parts_in(self.out, "jsonl", "parquet")
            return {number: receipt for number, receipt in by_part.items() if number in parts}
        return by_part

    def receipts_mark(self) -> tuple[int, int]:
        """Return what changes with each receipt of a job in a folder of this machine: the folder's
        inode, and its time in ns. OSError where there is none."""
        status = Path(str(self._receipts)).stat()
        return status.st_ino, status.st_mtime_ns

    def careful_rows(self, part: int) -> int:
        """Return how many rows of a part are answered that runs row by row."""
        return PartFiles(self.out, part, "").partial_count()

    def ids_file(self, part: int) -> AnyPath:
        """Return the file with the digests of a part's ids."""
        return self._receipts / f"{part:05}.ids"

    def _refuse_foreign(self) -> None:
        if self.out.is_dir() and not self._state.is_dir() and any(self.out.glob("*")):
            raise BatchError(f"{self.out} is not empty and holds no job: choose another --output")


def check_options(options: Options, manifest: Manifest) -> None:
    """Raise BatchError where an archive's output cannot be as the options ask. Of the answers those
    to the probes are known here; a worker knows all their fields."""
    try:
        check_kept(options.keep, {name for probe in manifest.probes for name in probe.answer})
    except ValueError as error:
        raise BatchError(str(error)) from error


def _whole(file: AnyPath) -> bytes:
    """Read a file of a job. OSError where it is a pipe or the like, or too large: the folder may be
    anybody's, and the control service reads it too."""
    if isinstance(file, Path):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise OSError(errno.EINVAL, "it is no file of a job", str(file))
    return file.read_bytes()


def differences(before: JobRecord, now: JobRecord) -> Iterator[str]:
    """Yield what of a job's record is not what it was."""
    if before.sha256 != now.sha256:
        yield f"of {before.archive} (sha256 {before.sha256[:12]}), not {now.archive}"
    if before.options != now.options:
        options = before.options.model_dump()
        names = [name for name, value in now.options.model_dump().items() if value != options[name]]
        yield f"with another {', '.join(f'--{name}' for name in names)}"
    paths = [source.path for source in before.sources]
    if paths != [source.path for source in now.sources]:
        yield "of other input files"
    else:
        yield from changed(before.sources, now.sources)


def total(receipts: Mapping[int, Receipt]) -> Mapping[str, Any]:
    """Return the sums of all receipts, as the report has them."""
    errors: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for receipt in receipts.values():
        errors.update(receipt.errors)
        labels.update(receipt.labels)
    return {
        "parts": len(receipts),
        "rows": sum(receipt.rows for receipt in receipts.values()),
        "failed": sum(errors.values()),
        "errors": dict(errors.most_common()),
        "labels": dict(labels.most_common()),
        "cpu_seconds": round(sum(receipt.cpu_seconds for receipt in receipts.values()), 1),
    }
