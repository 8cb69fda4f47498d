"""A mean over items, and how sure it is.

scipy is imported where it is used: recipes, which every export reads, import this.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
"""Bootstrap draws behind an interval."""
_AT_A_TIME = 100


def interval_of_mean(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return 95 % percentile bootstrap interval of the mean of two values or more."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_AT_A_TIME,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def means(values: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Return the mean of each figure's values, one an item, and ``intervals_95`` of those with two
    items or more; JSON-ready."""
    lists = {name: np.asarray(items, dtype=np.float64) for name, items in values.items()}
    figures: dict[str, Any] = {name: float(items.mean()) for name, items in lists.items()}
    intervals = {
        name: list(interval_of_mean(items)) for name, items in lists.items() if len(items) > 1
    }
    return figures | ({"intervals_95": intervals} if intervals else {})
