"""Run a job: hand parts to workers, take their receipts, order again what died."""

import resource
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlserve.batch.job import (
    WHOLE,
    JobFolder,
    JobRecord,
    Options,
    Progress,
    Receipt,
    check_options,
)
from vlserve.batch.locks import Shard
from vlserve.batch.parts import Part, TextPart, cut
from vlserve.batch.progress import Pace
from vlserve.batch.report import make_report, write_report
from vlserve.batch.sample import Prediction, draw, predict
from vlserve.batch.sources import find_sources
from vlserve.batch.workers import Crew, Reply, Workers, working
from vlserve.errors import BatchError
from vlserve.runtime.archive import file_sha256, unpack_archive, verify_archive
from vlserve_worker.batch_order import Order
from vlserve_worker.batch_process import Launch
from vlserve_worker.storage import AnyPath

KILLED, TIMED_OUT = "worker_killed", "item_timeout"
_POLL_S = 0.2
_TELL_EVERY_S = 1.0
_OPEN_WITHIN_S = 600.0
"""A worker checks and opens the archive, which may have gigabytes."""
_STUCK_AFTER = 2
"""Deaths of workers at one part without a row more."""
_MOST_FAILED_STARTS = 8

Show = Callable[[str], None]


@dataclass(frozen=True)
class Crewing:
    """How the work is done, which changes no answer. ``workers``: so many at the most, and no
    more than there are parts; ``item_timeout_s``: without a word from a worker for so long its rows
    run one by one, and a row that takes so long alone fails; ``batch``: rows that the graphs get at
    once, at the most; ``cluster``: address of a Ray cluster, whose nodes then have the workers (0:
    one a CPU)."""

    workers: int
    threads: int = 1
    item_timeout_s: float = 60.0
    batch: int = 8
    shard: Shard = WHOLE
    cluster: str = ""


@dataclass
class Deaths:
    """Of workers at one part. ``rows``: what was kept of it at the last one."""

    rows: int = -1
    in_vain: int = 0


@dataclass
class Work:
    """What is still to be done, and who does what. ``first``: orders that go before ``orders``, the
    job's first ones and those of workers that died."""

    orders: Iterator[Order]
    first: deque[Order] = field(default_factory=deque)
    busy: dict[int, Order] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    deaths: dict[int, Deaths] = field(default_factory=dict)
    is_begun: bool = False
    failed_starts: int = 0
    """Of workers that ended before they were ready: killed, or after others have started."""

    def next_order(self) -> Order | None:
        return self.first.popleft() if self.first else next(self.orders, None)


def run_batch(
    archive: Path,
    patterns: Sequence[str],
    out: AnyPath,
    options: Options,
    crewing: Crewing,
    *,
    retry_errors: bool = False,
    core_hour_price: float | None = None,
    show: Show = lambda line: None,
) -> Mapping[str, Any]:
    """Answer every row of the input, and return the report, which is also OUT/report.json.

    Args:
        archive: The archive file whose own code answers.
        patterns: Input files, folders and globs.
        out: The folder of the output; an earlier run of the same job goes on there.
        retry_errors: Whether rows that failed in an earlier run run again.
        core_hour_price: Of one core for one hour, for the cost in the report.
        show: Takes lines of progress.

    Raises:
        BatchError: The folder holds another job or cannot be written, or workers die without a
            row's fault.
        DataError: An input file cannot be read.
        ArchiveError: The archive is bad.
    """
    record = describe(archive, patterns, options, out)
    folder, start, cpu_s = JobFolder(out), time.monotonic(), _cpu_s()
    try:
        with folder.locked(crewing.shard) as locks:
            folder.begin(record)
            before = folder.receipts()
            job = Job(folder, record, crewing, show)
            job.answer(job.orders(cut(record.sources), before, retry_errors=retry_errors), locks)
            report = _report(job, start, cpu_s, len(before), core_hour_price)
            report = {**report, "unfinished_parts": job.parts - report["parts"]}
            if not report["unfinished_parts"]:
                write_report(folder, report)
    except OSError as error:
        raise BatchError(_unwritten(out, error.strerror or error)) from error
    return report


def predict_batch(
    archive: Path,
    patterns: Sequence[str],
    rows: int,
    options: Options,
    crewing: Crewing,
    *,
    core_hour_price: float | None = None,
    show: Show = lambda line: None,
) -> Prediction:
    """Answer ``rows`` rows that are spread over the input, keep nothing, and return what the whole
    takes. All CPU time of this process counts as the sample's. Raises as `run_batch`."""
    start = time.monotonic()
    record = describe(archive, patterns, options)
    with tempfile.TemporaryDirectory(prefix="vlserve-sample-") as scratch:
        sample = draw(record.sources, rows, crewing.workers, Path(scratch))
        folder = JobFolder(Path(scratch) / "out")
        with folder.locked() as locks:
            job = Job(folder, record, crewing, show)
            drawn_s = time.monotonic() - start
            job.answer(job.orders(sample.parts, {}), locks)
            receipts = list(folder.receipts().values())
            answered_at = time.monotonic()
            write_report(folder, _report(job, start, 0.0, 0, core_hour_price))
            report_s = time.monotonic() - answered_at
    return predict(
        sample,
        receipts,
        workers=crewing.workers,
        start_s=drawn_s + job.started_s + report_s,
        sampling_cpu_s=_cpu_s(),
        core_hour_price=core_hour_price,
    )


def _report(
    job: "Job", start: float, cpu_s: float, parts_before: int, core_hour_price: float | None
) -> Mapping[str, Any]:
    """Return the report of a run that began at ``start``, when ``cpu_s`` of CPU were used."""
    seconds = time.monotonic() - start
    run = {
        "parts_of_earlier_runs": parts_before,
        "seconds": round(seconds, 1),
        "rows_per_s": round(job.pace.rows / max(seconds, 1e-6), 2),
        "run_cpu_seconds": round(_cpu_s() - cpu_s, 1),
        "core_hour_price": core_hour_price,
    }
    return make_report(job.record, job.folder, run, core_hour_price)


def describe(
    archive: Path, patterns: Sequence[str], options: Options, out: AnyPath | None = None
) -> JobRecord:
    """Return what a job into ``out`` is. DataError or ArchiveError where input or archive cannot be
    read, BatchError where the output cannot be as the options ask."""
    manifest = verify_archive(archive)
    check_options(options, manifest)
    return JobRecord(
        archive=str(archive.resolve()),
        sha256=file_sha256(archive),
        model=manifest.model,
        version=manifest.version,
        task=manifest.task,
        sources=find_sources(patterns, out),
        options=options,
    )


class Job:
    """One run of a job. ``started_s``: until the first worker was ready, s; ``parts``: of the whole
    input."""

    def __init__(
        self, folder: JobFolder, record: JobRecord, crewing: Crewing, show: Show = lambda line: None
    ) -> None:
        self.folder, self.record, self._crewing, self._show = folder, record, crewing, show
        self._shares: dict[int, float] = {}
        self.pace = Pace(time.monotonic())
        self._told_at = -_TELL_EVERY_S
        self.started_s = 0.0
        self.parts = 0

    def orders(
        self, parts: Iterable[Part], before: Mapping[int, Receipt], *, retry_errors: bool = False
    ) -> Iterator[Order]:
        """Yield an order for each part that is not finished, or has errors to be tried again.

        Raises:
            BatchError: Another version of vlserve has cut the input into other parts.
        """
        for part in parts:
            self.parts += 1
            receipt = before.get(part.number)
            if receipt and (receipt.first_row, receipt.rows) != (part.first_row, part.rows):
                raise BatchError(
                    f"{self.folder.out} has parts that another version of vlserve has cut: go on "
                    "with that one, or choose another --output"
                )
            is_open = receipt is None or (retry_errors and receipt.errors)
            if is_open and self._crewing.shard.has(part.number):
                order = self._order(part)
                self._shares[part.number] = part.share
                yield replace(order, redo=receipt is not None)
            else:
                self.pace.keep(part.share)

    def answer(self, orders: Iterator[Order], locks: tuple[int, ...]) -> None:
        """Have workers do all the orders; where there are none, none starts."""
        began_at = time.monotonic()
        first = deque(islice(orders, max(self._crewing.workers, 1)))
        if not first:
            return
        with tempfile.TemporaryDirectory(prefix="vlserve-batch-") as scratch:
            archive_folder = Path(scratch) / "archive"
            unpack_archive(Path(self.record.archive), archive_folder)
            options = self.record.options.model_dump() | {"out": str(self.folder.out.resolve())}
            options["batch"] = self._crewing.batch
            launch = Launch(archive_folder, options, self._crewing.threads, locks, self.folder.log)
            with self._workers(launch, len(first)) as crew:
                self.run(crew, Work(orders, first))
        self.started_s = self.pace.began_at - began_at

    @contextmanager
    def _workers(self, launch: Launch, parts: int) -> Iterator[Workers]:
        count = min(self._crewing.workers, parts)
        if not self._crewing.cluster:
            with working(Crew(launch, count)) as crew:
                yield crew
            return
        from vlserve.batch.cluster import connected, running_on
        from vlserve.batch.shipment import pack_shipment

        shipment = pack_shipment(self.record, launch)
        with connected(self._crewing.cluster), running_on(shipment, count) as nodes:
            yield nodes

    def run(self, crew: Workers, work: Work) -> None:
        """Have the crew do all the work."""
        while True:
            self._hand_out(crew, work)
            if work.idle and not work.busy:
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
                str(part.file or place),
                row_group=part.row_group,
                start=part.start,
                count=part.count,
                folder=place if part.file else "",
            )
        spool = self.folder.spool / f"{part.number:05}.jsonl"
        try:
            spool.write_bytes(b"".join(line + b"\n" for line in part.lines))
        except OSError as error:
            raise BatchError(_unwritten(spool, error.strerror)) from error
        return Order(part.number, part.first_row, place, str(spool))

    def _hand_out(self, crew: Workers, work: Work) -> None:
        while work.idle:
            order = work.next_order()
            if order is None:
                return
            worker = work.idle.pop()
            work.busy[worker] = order
            crew.workers[worker].order(asdict(order))

    def _hear(self, crew: Workers, work: Work, reply: Reply) -> None:
        if reply.worker not in crew.workers:
            return
        match reply.message:
            case None:
                self._bury(crew, work, reply.worker)
            case {"ready": True}:
                if not work.is_begun:
                    work.is_begun, self.pace.began_at = True, time.monotonic()
                work.idle.append(reply.worker)
            case {"failed": why}:
                raise BatchError(_unwritten(self.folder.out, why))
            case {"receipt": receipt}:
                order = work.busy.pop(reply.worker)
                work.idle.append(reply.worker)
                if order.spool:
                    Path(order.spool).unlink(missing_ok=True)
                self._count(Receipt.model_validate(receipt))

    def _bury(self, crew: Workers, work: Work, worker: int) -> None:
        """Remove a worker that has ended; its part goes on carefully, with another."""
        code = crew.remove(worker).exit_code or 0
        order = work.busy.pop(worker, None)
        if order is None:
            self._replace(crew, work, worker, is_killed=code < 0)
            return
        self._order_again(crew, work, order, (KILLED, f"its worker ended by {_ended(code)}"))

    def _replace(self, crew: Workers, work: Work, worker: int, *, is_killed: bool) -> None:
        """Replace a worker that ended with nothing to do, or before it was ready."""
        if worker in work.idle:
            work.idle.remove(worker)
        else:
            work.failed_starts += 1
            may_start = work.is_begun or is_killed
            if work.failed_starts > _MOST_FAILED_STARTS or not may_start:
                raise BatchError(f"the archive's code does not start: {crew.last_words()}")
        crew.start_one()

    def _end_hung(self, crew: Workers, work: Work) -> None:
        limit_s = self._crewing.item_timeout_s
        now = time.monotonic()
        newcomers = crew.workers.keys() - work.busy.keys() - set(work.idle)
        if any(now - crew.workers[number].heard_at > _OPEN_WITHIN_S for number in newcomers):
            raise BatchError(f"the archive does not open within {_OPEN_WITHIN_S:g} s")
        stragglers = [
            number for number in work.busy if now - crew.workers[number].heard_at > limit_s
        ]
        for number in stragglers:
            crew.remove(number)
            order = work.busy.pop(number)
            self._order_again(crew, work, order, (TIMED_OUT, f"no answer within {limit_s:g} s"))

    def _order_again(self, crew: Workers, work: Work, order: Order, fate: tuple[str, str]) -> None:
        if order.careful:
            self._refuse_stuck(work.deaths.setdefault(order.number, Deaths()), order, crew)
        fates = fate if order.careful else ()
        work.first.append(replace(order, careful=True, fate=fates, redo=False))
        crew.start_one()

    def _refuse_stuck(self, deaths: Deaths, order: Order, crew: Workers) -> None:
        """Refuse deaths that brought neither a row more nor the row that the worker was at."""
        rows = self.folder.careful_rows(order.number)
        deaths.in_vain = deaths.in_vain + 1 if rows == deaths.rows else 0
        deaths.rows = rows
        if deaths.in_vain >= _STUCK_AFTER:
            raise BatchError(f"workers die at part {order.number}: {crew.last_words()}")

    def _count(self, receipt: Receipt) -> None:
        failures, share = sum(receipt.errors.values()), self._shares.pop(receipt.part)
        now = time.monotonic()
        self.pace.count(receipt.rows, failures, share)
        self._show(self.pace.line(now))
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            share = min(1.0, self.pace.earlier + self.pace.share)
            self.folder.tell_progress(
                Progress(share=share, left_s=self.pace.left_s(now), at=time.time())
            )


def _unwritten(path: AnyPath, why: object) -> str:
    return f"{path} cannot be written: {why}; mend it, and the same command goes on"


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _cpu_s() -> float:
    """Return CPU time of this process and of those that it has started and that have ended, s."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
