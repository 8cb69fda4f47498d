"""Run a job: hand parts to workers, take their receipts, order again what died."""

import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlserve.batch.job import JobFolder, JobRecord, Options, Receipt, total
from vlserve.batch.parts import Part, TextPart, cut
from vlserve.batch.sources import find_sources
from vlserve.batch.workers import Crew, Launch, Reply, running
from vlserve.errors import BatchError
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve_worker.batch_order import Order

KILLED, TIMED_OUT = "worker_killed", "item_timeout"
_POLL_S = 0.2
_OPEN_WITHIN_S = 600.0
"""A worker checks and opens the archive, which may have gigabytes."""
_STUCK_AFTER = 2
"""Deaths of workers at one part without a row more."""

Show = Callable[[str], None]


@dataclass(frozen=True)
class Crewing:
    """How the work is done, which changes no answer. ``item_timeout_s``: without a word from a
    worker for so long its rows run one by one, and a row that takes so long alone fails."""

    workers: int
    threads: int = 1
    item_timeout_s: float = 60.0


@dataclass
class Deaths:
    """Of workers at one part. ``rows``: what was kept of it at the last one."""

    rows: int = -1
    in_vain: int = 0


@dataclass
class Work:
    """What is still to be done, and who does what."""

    orders: Iterator[Order]
    again: deque[Order] = field(default_factory=deque)
    busy: dict[int, Order] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    deaths: dict[int, Deaths] = field(default_factory=dict)

    def next_order(self) -> Order | None:
        return self.again.popleft() if self.again else next(self.orders, None)


def run_batch(
    archive: Path,
    patterns: Sequence[str],
    out: Path,
    options: Options,
    crewing: Crewing,
    *,
    retry_errors: bool = False,
    show: Show = lambda line: None,
) -> Mapping[str, Any]:
    """Answer every row of the input, and return the report, which is also OUT/report.json.

    Args:
        archive: The archive file whose own code answers.
        patterns: Input files, folders and globs.
        out: The folder of the output; an earlier run of the same job goes on there.
        retry_errors: Whether rows that failed in an earlier run run again.
        show: Takes lines of progress.

    Raises:
        BatchError: The folder holds another job, or workers die without a row's fault.
        DataError: An input file cannot be read.
        ArchiveError: The archive is bad.
    """
    manifest = verify_archive(archive)
    record = JobRecord(
        archive=str(archive.resolve()),
        sha256=file_sha256(archive),
        model=manifest.model,
        version=manifest.version,
        task=manifest.task,
        sources=find_sources(patterns),
        options=options,
    )
    folder, started = JobFolder(out), time.monotonic()
    with folder.locked() as lock, tempfile.TemporaryDirectory(prefix="vlserve-batch-") as scratch:
        folder.begin(record)
        unpacked = Path(scratch) / "archive"
        unpack_archive(archive, unpacked)
        before = folder.receipts()
        told = options.model_dump() | {"out": str(out.resolve())}
        launch = Launch(unpacked, told, crewing.threads, lock, folder.log)
        job = _Job(folder, record, crewing, before, show)
        with running(launch, crewing.workers) as crew:
            job.run(crew, Work(job.orders(retry_errors)))
        report = _report(record, folder, len(before), time.monotonic() - started)
        folder.write_report(report)
    return report


class _Job:
    """One run of a job. Its decisions are taken in one thread, which hears all workers."""

    def __init__(
        self,
        folder: JobFolder,
        record: JobRecord,
        crewing: Crewing,
        before: Mapping[int, Receipt],
        show: Show,
    ) -> None:
        self._folder, self._record, self._crewing, self._show = folder, record, crewing, show
        self._before = before
        self._rows = self._failed = 0
        self._started = time.monotonic()

    def orders(self, retry_errors: bool) -> Iterator[Order]:
        """Yield an order for each part that is not finished, or has errors to be tried again."""
        for part in cut(self._record.sources):
            receipt = self._before.get(part.number)
            if receipt is None or (retry_errors and receipt.errors):
                order = self._order(part)
                yield replace(order, redo=receipt is not None)

    def run(self, crew: Crew, work: Work) -> None:
        """Have the crew do all the work."""
        while True:
            self._hand_out(crew, work)
            if not work.busy and len(work.idle) == len(crew.workers):
                return
            for reply in crew.replies(_POLL_S):
                self._hear(crew, work, reply)
            self._end_hung(crew, work)

    def _order(self, part: Part) -> Order:
        place = str(part.source.path)
        if not isinstance(part, TextPart):
            return Order(
                part.number,
                part.first_row,
                place,
                row_group=part.row_group,
                start=part.start,
                count=part.count,
            )
        spool = self._folder.spool / f"{part.number:05}.jsonl"
        spool.write_bytes(b"".join(line + b"\n" for line in part.lines))
        return Order(part.number, part.first_row, place, str(spool))

    def _hand_out(self, crew: Crew, work: Work) -> None:
        while work.idle:
            order = work.next_order()
            if order is None:
                return
            worker = work.idle.pop()
            work.busy[worker] = order
            crew.workers[worker].order(asdict(order))

    def _hear(self, crew: Crew, work: Work, reply: Reply) -> None:
        if reply.worker not in crew.workers:
            return
        match reply.said:
            case None:
                self._bury(crew, work, reply.worker)
            case {"ready": True}:
                work.idle.append(reply.worker)
            case {"failed": why}:
                raise BatchError(f"{why}; mend it and start the same command again: it goes on")
            case {"receipt": receipt}:
                order = work.busy.pop(reply.worker)
                work.idle.append(reply.worker)
                if order.spool:
                    Path(order.spool).unlink(missing_ok=True)
                self._count(Receipt.model_validate(receipt))

    def _bury(self, crew: Crew, work: Work, worker: int) -> None:
        """A worker has ended: its part goes on carefully, with another."""
        code = crew.remove(worker).exit_code or 0
        order = work.busy.pop(worker, None)
        if order is None:
            raise BatchError(f"the archive's code does not start: {crew.last_words()}")
        self._order_again(crew, work, order, (KILLED, f"its worker ended by {_ended(code)}"))

    def _end_hung(self, crew: Crew, work: Work) -> None:
        limit_s = self._crewing.item_timeout_s
        now = time.monotonic()
        opening = crew.workers.keys() - work.busy.keys() - set(work.idle)
        if any(now - crew.workers[number].heard_at > _OPEN_WITHIN_S for number in opening):
            raise BatchError(f"the archive does not open within {_OPEN_WITHIN_S:g} s")
        hung = [number for number in work.busy if now - crew.workers[number].heard_at > limit_s]
        for number in hung:
            crew.remove(number)
            order = work.busy.pop(number)
            self._order_again(crew, work, order, (TIMED_OUT, f"no answer within {limit_s:g} s"))

    def _order_again(self, crew: Crew, work: Work, order: Order, fate: tuple[str, str]) -> None:
        if order.careful:
            self._refuse_stuck(work.deaths.setdefault(order.number, Deaths()), order, crew)
        fates = fate if order.careful else ()
        work.again.append(replace(order, careful=True, fate=fates, redo=False))
        crew.start_one()

    def _refuse_stuck(self, deaths: Deaths, order: Order, crew: Crew) -> None:
        """Each death must have brought a row more, or the row that it was at."""
        rows = self._folder.careful_rows(order.number)
        deaths.in_vain = deaths.in_vain + 1 if rows == deaths.rows else 0
        deaths.rows = rows
        if deaths.in_vain >= _STUCK_AFTER:
            raise BatchError(f"workers die at part {order.number}: {crew.last_words()}")

    def _count(self, receipt: Receipt) -> None:
        self._rows += receipt.rows
        self._failed += sum(receipt.errors.values())
        rate = self._rows / max(time.monotonic() - self._started, 1e-6)
        self._show(f"{self._rows} rows, {self._failed} failed, {rate:.1f} rows/s")


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _report(
    record: JobRecord, folder: JobFolder, parts_before: int, seconds: float
) -> dict[str, Any]:
    of = record.model_dump(mode="json", include={"archive", "sha256", "model", "version", "task"})
    return {
        "schema": 1,
        **of,
        "out": str(folder.out),
        **total(folder.receipts()),
        "parts_of_earlier_runs": parts_before,
        "seconds": round(seconds, 1),
    }
