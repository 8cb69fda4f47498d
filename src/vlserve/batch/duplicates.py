"""Ids that come more than once, counted from the digests that workers keep of each part."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlserve_worker.batch_parts import ID_BYTES
from vlserve_worker.storage import AnyPath

ROWS_AT_ONCE = 4_000_000
"""Digests in memory; of more rows the files are read several times."""


def count_duplicates(files: Sequence[AnyPath], rows: Sequence[int]) -> int | None:
    """Return how many rows have an id that an earlier row has.

    Args:
        files: Digests, one file a part.
        rows: How many each must have.

    Returns:
        None where a file is absent or not whole: its part is of an earlier vlserve.
    """
    if not all(_is_whole(file, count) for file, count in zip(files, rows, strict=True)):
        return None
    passes = sum(rows) // ROWS_AT_ONCE + 1
    return sum(_duplicates(files, passes, turn) for turn in range(passes))


def _is_whole(file: AnyPath, rows: int) -> bool:
    return file.is_file() and file.stat().st_size == rows * ID_BYTES


def _duplicates(files: Sequence[AnyPath], passes: int, turn: int) -> int:
    pieces = list(_digests(files, passes, turn))
    digests = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    return len(digests) - len(np.unique(digests))


def _digests(files: Sequence[AnyPath], passes: int, turn: int) -> Iterator[NDArray[np.uint64]]:
    for file in files:
        own = np.frombuffer(file.read_bytes(), np.uint64)
        yield own if passes == 1 else own[own % np.uint64(passes) == turn]
