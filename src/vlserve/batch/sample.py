"""Rows spread evenly over an input, and what the whole costs by what they cost.

Text kinds are read once from end to end; of Parquet some row groups are. Rows keep the columns, and
the folder of relative paths, that they have in the input.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlserve.batch.job import Receipt
from vlserve.batch.parts import ParquetPart, Part, TextPart, opened_parquet
from vlserve.batch.rows import read_lines
from vlserve.batch.sources import Kind, Source
from vlserve.errors import BatchError

MOST_GROUPS = 16
"""Row groups that a sample reads; a group may have gigabytes."""
PART_ROWS = 64
PARTS_A_WORKER = 4
"""Of each worker's parts the first does not count: it warms up."""

T = TypeVar("T")


@dataclass(frozen=True)
class RowGroup:
    """One of a Parquet file."""

    source: Source
    number: int
    rows: int


@dataclass(frozen=True)
class Sample:
    """``input_rows``: of the whole input."""

    parts: Sequence[Part]
    input_rows: int


@dataclass(frozen=True)
class Prediction:
    """What the whole input takes. ``cpu_ms_per_row``: of answering, measured on ``sampled_rows``;
    ``cost``: of the CPU time, at a price of a core hour; None without one."""

    sampled_rows: int
    failed_rows: int
    input_rows: int
    workers: int
    cpu_ms_per_row: float
    cpu_seconds: float
    seconds: float
    cost: float | None
    cost_per_million: float | None


class Spread(Generic[T]):
    """Takes one after the other and keeps ``count`` of them, evenly spread, in flat memory."""

    def __init__(self, count: int) -> None:
        self._most = 2 * count
        self._kept: list[T] = []
        self._every = 1
        self.seen = 0

    def offer(self, item: T) -> None:
        if self.seen % self._every == 0:
            self._kept.append(item)
            if len(self._kept) == self._most:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self.seen += 1

    def kept(self, count: int) -> list[T]:
        """Return at most ``count`` of all that were offered, in their order."""
        return evenly(self._kept, count)


def evenly(things: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of ``things``, evenly spread; all where there are no more."""
    if len(things) <= count:
        return list(things)
    return [things[len(things) * place // count] for place in range(count)]


def draw(sources: Sequence[Source], rows: int, workers: int, scratch: Path) -> Sample:
    """Return ``rows`` rows of ``sources`` as parts; rows of Parquet are copied into ``scratch``.

    Raises:
        BatchError: The input has no row.
        DataError: A file cannot be read.
    """
    groups = list(_groups(sources))
    table_rows = sum(group.rows for group in groups)
    lines: Spread[tuple[Source, bytes]] = Spread(rows)
    for source in sources:
        if source.kind is not Kind.PARQUET:
            for line in read_lines(source):
                lines.offer((source, line))
    total = table_rows + lines.seen
    if not total:
        raise BatchError("the input has no row to sample")
    own_lines = lines.kept(-(-rows * lines.seen // total))
    places = _places(groups, rows - len(own_lines)) if table_rows else {}
    size = min(max(rows // (PARTS_A_WORKER * workers), 8), PART_ROWS)
    parts: list[Part] = []
    for number, source in enumerate(sources):
        parts += _text_parts(source, [line for its, line in own_lines if its is source], size)
        own = {group.number: picks for group, picks in places.items() if group.source is source}
        parts += _parquet_parts(source, own, size, scratch / f"{number}.parquet")
    return Sample(tuple(_numbered(parts)), total)


def predict(
    sample: Sample,
    receipts: Sequence[Receipt],
    *,
    workers: int,
    start_s: float,
    sampling_cpu_s: float,
    core_hour_price: float | None,
) -> Prediction:
    """Return what the whole input takes.

    Args:
        receipts: Of the sample's parts.
        start_s: Until the workers could begin, and for the report, s.
        sampling_cpu_s: CPU time of the whole sample, with the workers' start, one reading of the
            input and a report; what the other rows take comes to it, s.
        core_hour_price: Of one core for one hour, in any currency.
    """
    receipts_after_start = _without_first_of_each_worker(receipts)
    rows = sum(receipt.rows for receipt in receipts_after_start)
    if not rows:
        raise BatchError("no row of the sample was answered")
    cpu_s = sum(receipt.cpu_seconds for receipt in receipts_after_start) / rows
    wall_s = sum(receipt.seconds for receipt in receipts_after_start) / rows
    sampled_rows = sum(receipt.rows for receipt in receipts)
    all_cpu_s = sampling_cpu_s + (sample.input_rows - sampled_rows) * cpu_s
    price_s = None if core_hour_price is None else core_hour_price / 3600
    return Prediction(
        sampled_rows=sampled_rows,
        failed_rows=sum(sum(receipt.errors.values()) for receipt in receipts),
        input_rows=sample.input_rows,
        workers=workers,
        cpu_ms_per_row=round(cpu_s * 1000, 4),
        cpu_seconds=round(all_cpu_s, 1),
        seconds=round(start_s + sample.input_rows * wall_s / workers, 1),
        cost=None if price_s is None else all_cpu_s * price_s,
        cost_per_million=None if price_s is None else cpu_s * 1e6 * price_s,
    )


def _without_first_of_each_worker(receipts: Sequence[Receipt]) -> Sequence[Receipt]:
    """Leave out the first receipt of each worker; return all where none would be left."""
    first: dict[int, Receipt] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.ended_at):
        first.setdefault(receipt.pid, receipt)
    later = [receipt for receipt in receipts if first[receipt.pid] is not receipt]
    return later or receipts


def _text_parts(source: Source, lines: Sequence[bytes], size: int) -> Iterator[TextPart]:
    for start in range(0, len(lines), size):
        yield TextPart(0, source, 0, lines[start : start + size])


def _groups(sources: Sequence[Source]) -> Iterator[RowGroup]:
    for source in sources:
        if source.kind is Kind.PARQUET:
            with opened_parquet(source.path) as file:
                for number in range(file.num_row_groups):
                    yield RowGroup(source, number, file.metadata.row_group(number).num_rows)


def _places(groups: Sequence[RowGroup], rows: int) -> dict[RowGroup, list[int]]:
    """Return which rows of which groups are sampled: ``rows`` of them, of `MOST_GROUPS` at the
    most."""
    sample = evenly([group for group in groups if group.rows], MOST_GROUPS)
    everyone = [(group, place) for group in sample for place in evenly(range(group.rows), rows)]
    places: dict[RowGroup, list[int]] = {}
    for group, place in evenly(everyone, rows):
        places.setdefault(group, []).append(place)
    return places


def _parquet_parts(
    source: Source, places: Mapping[int, Sequence[int]], size: int, file: Path
) -> Iterator[ParquetPart]:
    """Copy the rows at these places of row groups into ``file``."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    if not places:
        return
    with opened_parquet(source.path) as reader:
        codec = reader.metadata.row_group(0).column(0).compression
        codec = (
            "NONE" if codec == "UNCOMPRESSED" else codec
        )  # pyarrow reads one name, writes the other
        with ParquetWriter(file, reader.schema_arrow, compression=codec) as writer:
            number = 0
            for group, own in places.items():
                try:
                    table = _rows_of(reader, group, own)
                except (OSError, pyarrow.ArrowException):
                    continue  # its rows are errors that cost next to nothing
                for start in range(0, table.num_rows, size):
                    piece = table.slice(start, size)
                    writer.write_table(piece)
                    yield ParquetPart(0, source, 0, number, 0, piece.num_rows, file=file)
                    number += 1


def _rows_of(file: Any, group: int, places: Sequence[int]) -> Any:
    import pyarrow

    pieces, at, places_ahead = [], 0, sorted(places)
    for batch in file.iter_batches(PART_ROWS, [group]):
        inside = [place - at for place in places_ahead if place < at + batch.num_rows]
        pieces.append(batch.take(pyarrow.array(inside, pyarrow.int64())))
        at, places_ahead = at + batch.num_rows, places_ahead[len(inside) :]
        if not places_ahead:
            break
    return pyarrow.Table.from_batches(pieces, file.schema_arrow)


def _numbered(parts: Sequence[Part]) -> Iterator[Part]:
    row, total = 0, sum(part.rows for part in parts)
    for number, part in enumerate(parts):
        yield replace(part, number=number, first_row=row, share=part.rows / total)
        row += part.rows
