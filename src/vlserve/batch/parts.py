"""Parts: what one worker answers in one go, and what is redone when it dies.

The first parts are small, so that results are soon there; later ones are larger, so that a part's
own cost does not show.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from vlserve.batch.rows import Reading, read_lines
from vlserve.batch.sources import Kind, Source, weight
from vlserve.errors import DataError
from vlserve_worker.storage import AnyPath, parquet_file

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FIRST_ROWS, MOST_ROWS = 32, 2048
FIRST_PARTS = 5
"""So many parts are small whatever their rows weigh. Each begins where the rows before it are as
many as it has itself, so all of them read over fewer rows than they answer."""
SKIPPED_BYTES = 500_000
"""A part inside a row group reads over the rows before it. A group is cut into as many parts at
most as cost a row this many bytes of reading, which takes a twentieth of what an image takes."""
MOST_LINE_BYTES = 256 * 1024**2
"""A part of text lines ends before it holds more."""


@dataclass(frozen=True)
class TextPart:
    """Lines of a file, which the driver spools for a worker. ``first_row`` counts from the job's
    first row, ``source`` is the file; ``share`` of the whole input, by bytes."""

    number: int
    source: Source
    first_row: int
    lines: Sequence[bytes]
    share: float = 0.0

    @property
    def rows(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class ParquetPart:
    """Rows of one row group: ``count`` of them, from ``start`` of the group on. ``file`` has them
    where the source itself is only sampled."""

    number: int
    source: Source
    first_row: int
    row_group: int
    start: int
    count: int
    share: float = 0.0
    file: AnyPath | None = None

    @property
    def rows(self) -> int:
        return self.count


Part = TextPart | ParquetPart


def cut(sources: Sequence[Source]) -> Iterator[Part]:
    """Yield the parts of all sources, in order; the same sources give the same parts.

    Raises:
        DataError: A file cannot be read.
    """
    number = row = 0
    weights = [weight(source) for source in sources]
    for source, own in zip(sources, weights, strict=True):
        cuts = _cut_parquet if source.kind is Kind.PARQUET else _cut_lines
        for part in cuts(source, number, row):
            yield replace(part, share=part.share * own / max(sum(weights), 1))
            number += 1
            row += part.rows


def rows_of(number: int) -> int:
    """Return how many rows a part may have, by its number."""
    return min(FIRST_ROWS << min(number, 16), MOST_ROWS)


def _cut_lines(source: Source, number: int, row: int) -> Iterator[TextPart]:
    reading, before = Reading(), 0.0
    lines = read_lines(source, reading)
    while piece := list(_up_to(lines, rows_of(number))):
        share = reading.share()
        yield TextPart(number, source, row, piece, share - before)
        number, row, before = number + 1, row + len(piece), share


def _up_to(lines: Iterable[bytes], rows: int) -> Iterator[bytes]:
    size = 0
    for line in islice(lines, rows):
        yield line
        size += len(line)
        if size > MOST_LINE_BYTES:
            return


def _cut_parquet(source: Source, number: int, row: int) -> Iterator[ParquetPart]:
    with opened_parquet(source.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        all_rows = file.metadata.num_rows
    for group, (rows, size) in enumerate(sizes):
        most_parts = max(1, int(SKIPPED_BYTES * rows / size)) if size else 1
        start = 0
        while start < rows:
            least = 0 if number < FIRST_PARTS else -(-rows // most_parts)
            count = min(max(rows_of(number), least), rows - start)
            yield ParquetPart(number, source, row, group, start, count, count / all_rows)
            number, row, start = number + 1, row + count, start + count


def opened_parquet(path: AnyPath) -> "ParquetFile":
    """Open a Parquet file. DataError where its end, which says what it holds, cannot be read."""
    import pyarrow

    try:
        return parquet_file(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
