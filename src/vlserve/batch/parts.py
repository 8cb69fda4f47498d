"""Parts: what one worker answers in one go, and what is redone when it dies.

The first parts are small, so that results are soon there; later ones are larger, so that a part's
own cost does not show.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vlserve.batch.rows import read_lines
from vlserve.batch.sources import Kind, Source
from vlserve.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FIRST_ROWS, MOST_ROWS = 32, 2048
SKIPPED_BYTES = 500_000
"""A part inside a row group reads over the rows before it. A group is cut into as many parts at
most as cost a row this many bytes of reading, which takes a twentieth of what an image takes."""
MOST_LINE_BYTES = 256 * 1024**2
"""A part of text lines ends before it holds more."""


@dataclass(frozen=True)
class TextPart:
    """Lines of a file, which the driver spools for a worker. ``rows`` counts from the job's first
    row, ``source`` is the file."""

    number: int
    source: Source
    first_row: int
    lines: Sequence[bytes]


@dataclass(frozen=True)
class ParquetPart:
    """Rows of one row group: ``count`` of them, from ``start`` of the group on."""

    number: int
    source: Source
    first_row: int
    row_group: int
    start: int
    count: int


Part = TextPart | ParquetPart


def cut(sources: Sequence[Source]) -> Iterator[Part]:
    """Yield the parts of all sources, in order; the same sources give the same parts.

    Raises:
        DataError: A file cannot be read.
    """
    number = row = 0
    for source in sources:
        cuts = _cut_parquet if source.kind is Kind.PARQUET else _cut_lines
        for part in cuts(source, number, row):
            yield part
            number += 1
            row += len(part.lines) if isinstance(part, TextPart) else part.count


def rows_of(number: int) -> int:
    """Return how many rows a part may have, by its number."""
    return min(FIRST_ROWS << min(number, 16), MOST_ROWS)


def _cut_lines(source: Source, number: int, row: int) -> Iterator[TextPart]:
    lines = read_lines(source)
    while piece := list(_up_to(lines, rows_of(number))):
        yield TextPart(number, source, row, piece)
        number, row = number + 1, row + len(piece)


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
    for group, (rows, size) in enumerate(sizes):
        most_parts = max(1, int(SKIPPED_BYTES * rows / size)) if size else 1
        start = 0
        while start < rows:
            count = min(max(rows_of(number), -(-rows // most_parts)), rows - start)
            yield ParquetPart(number, source, row, group, start, count)
            number, row, start = number + 1, row + count, start + count


def opened_parquet(path: Path) -> "ParquetFile":
    """Open a Parquet file. DataError where its end, which says what it holds, cannot be read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
