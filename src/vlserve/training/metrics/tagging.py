"""Figures of a tagger on labelled items, and how sure they are, with scipy.

Targets are a (items, labels) matrix of 0 and 1, scores a matrix of the same shape with
probabilities: softmax over the labels, or one sigmoid a label when items have several labels.
scipy and scikit-learn are imported where they are used, as in the rest of training: recipes, which
every export reads, import this.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5
"""A label of a multi-label item counts as predicted from this score on."""

Matrix = NDArray[Any]


@dataclass(frozen=True)
class Metrics:
    """``accuracy``: share of items whose best label is right; with several labels an item, whose
    whole set of labels is right; or of what `measure` is told is right. ``macro_f1``: mean over the
    labels that are true or predicted somewhere. ``map``: mean average precision over ``map_labels``
    labels. ``micro_f1`` is of multi-label data alone. ``intervals_95`` holds (low, high) by the
    name of the figure."""

    items: int
    accuracy: float
    macro_f1: float
    map: float
    map_labels: int
    micro_f1: float | None = None
    intervals_95: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figures JSON-ready, without what does not apply."""
        fields: dict[str, Any] = {
            "items": self.items,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "map": self.map,
            "map_labels": self.map_labels,
        }
        if self.micro_f1 is not None:
            fields["micro_f1"] = self.micro_f1
        if self.intervals_95:
            fields["intervals_95"] = {name: list(pair) for name, pair in self.intervals_95.items()}
        return fields


def predict(scores: Matrix, *, multi_label: bool) -> Matrix:
    """Turn scores (items, labels) into 0 and 1: the best label (the first of equal
    ones), or every label from THRESHOLD on."""
    if multi_label:
        return np.asarray(scores >= THRESHOLD, dtype=np.int64)
    predictions = np.zeros(scores.shape, dtype=np.int64)
    predictions[np.arange(len(scores)), scores.argmax(axis=1)] = 1
    return predictions


def average_precisions(targets: Matrix, scores: Matrix) -> NDArray[np.float64]:
    """Return average precision of each label, NaN where no item has it."""
    from sklearn.metrics import average_precision_score

    return np.array(
        [
            average_precision_score(truth, score) if truth.any() else np.nan
            for truth, score in zip(targets.T, scores.T, strict=True)
        ]
    )


def measure(
    targets: Matrix,
    scores: Matrix,
    *,
    multi_label: bool,
    map_columns: Collection[int] | None = None,
    right: Matrix | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Metrics:
    """Return all figures. ``map_columns`` restricts ``map`` to some labels; only labels that an
    item of the data has count in any case. ``right`` (items,): what ``accuracy`` is the mean of,
    where it is not whether all of an item's labels are predicted. ``resamples`` > 0 adds 95 %
    percentile bootstrap intervals over the items (none for fewer than two items)."""
    columns = sorted(range(targets.shape[1]) if map_columns is None else map_columns)
    predictions = predict(scores, multi_label=multi_label)
    if right is None:
        right = (targets == predictions).all(axis=1)
    ranking = _Ranking.of(targets[:, columns], scores[:, columns])
    everything = np.arange(len(targets))
    names, values = _figures(targets, predictions, right, multi_label, ranking, everything)
    figures = dict(zip(names, values.tolist(), strict=True))
    intervals: dict[str, tuple[float, float]] = {}
    if resamples and len(targets) > 1:
        from scipy.stats import bootstrap

        interval = bootstrap(
            (everything,),
            lambda resample: _figures(targets, predictions, right, multi_label, ranking, resample)[
                1
            ],
            vectorized=False,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        pairs = zip(interval.low.tolist(), interval.high.tolist(), strict=True)
        intervals = dict(zip(names, pairs, strict=True))
    return Metrics(
        items=len(targets),
        map_labels=int(targets[:, columns].any(axis=0).sum()),
        intervals_95=intervals,
        **figures,
    )


def _figures(
    targets: Matrix,
    predictions: Matrix,
    right: Matrix,
    multi_label: bool,
    ranking: "_Ranking",
    rows: Matrix,
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the figures of the items whose numbers are in ``rows``, some more than once.

    A bootstrap asks a thousand times: scikit-learn's functions, which give the same numbers, spend
    4 ms on looking at their arguments.
    """
    true, guesses = targets[rows], predictions[rows]
    hits = (true & guesses).sum(axis=0)
    sizes = true.sum(axis=0) + guesses.sum(axis=0)
    present = sizes > 0
    figures = {
        "accuracy": right[rows].mean(),
        "macro_f1": (2 * hits[present] / sizes[present]).mean() if present.any() else 0.0,
        "map": ranking.mean_average_precision(np.bincount(rows, minlength=len(targets))),
    }
    if multi_label:
        figures["micro_f1"] = 2 * hits.sum() / sizes.sum() if present.any() else 0.0
    return list(figures), np.array(list(figures.values()), dtype=np.float64)


@dataclass(frozen=True)
class _Ranking:
    """The items of each label by their scores, the highest first. Matrices (places, labels)."""

    items: Matrix
    """Numbers of the items."""
    true: Matrix
    """1 where the item has the label."""
    last: Matrix
    """The last place whose item has the same score."""

    @classmethod
    def of(cls, targets: Matrix, scores: Matrix) -> Self:
        items = np.argsort(-scores, axis=0, kind="stable")
        values = np.take_along_axis(scores, items, axis=0)
        places = np.arange(len(items))[:, None]
        ends = np.ones(items.shape, dtype=bool)
        ends[:-1] = values[:-1] != values[1:]
        last = np.minimum.accumulate(np.where(ends, places, len(items))[::-1], axis=0)[::-1]
        return cls(items, np.take_along_axis(targets, items, axis=0), last)

    def mean_average_precision(self, times: Matrix) -> float:
        """Return the mean of average_precision_score over the labels that an item has, where each
        item is there that many times; 0 where no item has any label."""
        counts = times[self.items]
        hits = counts * self.true
        of_label = hits.sum(axis=0)
        hits_so_far = np.take_along_axis(hits.cumsum(axis=0), self.last, axis=0)
        counts_so_far = np.take_along_axis(counts.cumsum(axis=0), self.last, axis=0)
        precisions = hits * (hits_so_far / np.maximum(counts_so_far, 1))
        present = of_label > 0
        return (
            float((precisions.sum(axis=0)[present] / of_label[present]).mean())
            if present.any()
            else 0.0
        )
