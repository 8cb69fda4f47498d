"""A mean over items, and how sure it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

RESAMPLES = 1000
"""Bootstrap draws behind an interval."""
_AT_A_TIME = 100


def interval_of_mean(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of two values or more."""
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
    """The mean of each figure's values, one an item, and ``intervals_95`` of those with two items
    or more; JSON-ready."""
    lists = {name: np.asarray(found, dtype=np.float64) for name, found in values.items()}
    figures: dict[str, Any] = {name: float(found.mean()) for name, found in lists.items()}
    intervals = {
        name: list(interval_of_mean(found)) for name, found in lists.items() if len(found) > 1
    }
    return figures | ({"intervals_95": intervals} if intervals else {})
