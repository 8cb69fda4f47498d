"""How far up the right candidate of a query stands."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)


def ranks(scores: NDArray[np.floating], right: Sequence[Collection[int]]) -> NDArray[np.int64]:
    """Return of each query the place of its best right candidate, 0 the first.

    ``scores`` (queries, candidates), higher is better; ``right``: of each query the right columns,
    one or more. Wrong candidates with the very score of the right one stand before it: a model that
    finds all alike finds nothing.
    """
    ranks = np.empty(len(scores), dtype=np.int64)
    for query, (row, columns) in enumerate(zip(scores, right, strict=True)):
        own = sorted(columns)
        before = row >= row[own].max()
        before[own] = False
        ranks[query] = before.sum()
    return ranks


def recalls(places: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return ``r1``, ``r5``, ``r10``: of each query 1 where it is found among the first so many."""
    return {f"r{count}": (places < count).astype(np.float64) for count in RECALL_AT}
