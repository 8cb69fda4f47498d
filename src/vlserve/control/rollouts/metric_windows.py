"""Metrics of a rollout by version and window of time, for people; the judge does not need them.

Quantiles come from the judge's histogram: within 6 % of the sample's. Windows go by the time at
which the evidence was read, about a second after the requests ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vlserve.control.judge import Outcome, ShadowPair, latency, tags
from vlserve.control.judge.capital import JsonArray

WINDOW_S = 10
KEPT = 60
LABELS = 50
"""Labels that a window counts by name; later ones count as others."""
OTHERS = "(others)"


@dataclass(frozen=True)
class VersionMetrics:
    """The requests of one version in one window. ``labels``: how often each was the best one."""

    requests: int = 0
    failed: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OpenLatencies:
    """The histograms of latency of the current window, by version."""

    candidate: JsonArray = field(default_factory=lambda: np.zeros(latency.BUCKETS))
    stable: JsonArray = field(default_factory=lambda: np.zeros(latency.BUCKETS))


@dataclass(frozen=True)
class MetricWindow:
    """``start``: Unix time, s. ``stability_index``: population stability index of the labels;
    None where a version answered nothing."""

    start: int
    step: int
    weight: int
    candidate: VersionMetrics = field(default_factory=VersionMetrics)
    stable: VersionMetrics = field(default_factory=VersionMetrics)
    stability_index: float | None = None
    pairs: int = 0
    agreeing: int = 0
    score_distance: float | None = None
    """Mean over the pairs."""
    e_values: Mapping[str, float] = field(default_factory=dict)
    """Gate -> its e-value at the window's last evaluation."""


@dataclass(frozen=True, eq=False)
class MetricWindows:
    """The last `KEPT` windows in which there was evidence, oldest first."""

    closed: tuple[MetricWindow, ...] = ()
    current: MetricWindow | None = None
    latencies: OpenLatencies = field(default_factory=OpenLatencies)

    @property
    def all(self) -> tuple[MetricWindow, ...]:
        """The closed windows and the current one."""
        return self.closed if self.current is None else (*self.closed, self.current)


def add(
    windows: MetricWindows,
    outcomes: Sequence[Outcome],
    pairs: Sequence[ShadowPair],
    *,
    now: float,
    step: int,
    weight: int,
) -> MetricWindows:
    """Return the windows with the evidence read at ``now`` (Unix time, s) in ``step``."""
    if not outcomes and not pairs:
        return windows
    start = int(now // WINDOW_S) * WINDOW_S
    window, latencies = windows.current, windows.latencies
    if window is None or (window.start, window.step) != (start, step):
        if window is not None:
            history = (*windows.closed, window)[-KEPT:]
            windows = replace(windows, closed=history)
        window, latencies = MetricWindow(start, step, weight), OpenLatencies()
    of_candidate = [outcome for outcome in outcomes if outcome.candidate]
    of_stable = [outcome for outcome in outcomes if not outcome.candidate]
    latencies = OpenLatencies(
        _count(latencies.candidate, of_candidate), _count(latencies.stable, of_stable)
    )
    window = _with_pairs(
        replace(
            window,
            candidate=_tally(window.candidate, of_candidate, latencies.candidate),
            stable=_tally(window.stable, of_stable, latencies.stable),
        ),
        pairs,
    )
    window = replace(window, stability_index=_stability_index(window))
    return MetricWindows(windows.closed, window, latencies)


def with_evidence(windows: MetricWindows, e_values: Mapping[str, float]) -> MetricWindows:
    """Return the windows with the gates' e-values in the current one."""
    if windows.current is None:
        return windows
    return replace(windows, current=replace(windows.current, e_values=dict(e_values)))


def _tally(
    tally: VersionMetrics, outcomes: Sequence[Outcome], histogram: JsonArray
) -> VersionMetrics:
    labels = dict(tally.labels)
    for tag in (tag for outcome in outcomes for tag in outcome.tags):
        label = tag if tag in labels or len(labels) < LABELS else OTHERS
        labels[label] = labels.get(label, 0) + 1
    p50_ms, p99_ms = (float(array) for array in latency.quantiles_ms(histogram, 0.5, 0.99))
    answered = bool(histogram.sum())
    return VersionMetrics(
        requests=tally.requests + len(outcomes),
        failed=tally.failed + sum(outcome.failed for outcome in outcomes),
        p50_ms=round(p50_ms, 3) if answered else None,
        p99_ms=round(p99_ms, 3) if answered else None,
        labels=labels,
    )


def _count(histogram: JsonArray, outcomes: Sequence[Outcome]) -> JsonArray:
    latencies_ms = [each.latency_ms for each in outcomes if not (each.failed or each.refused)]
    return histogram + latency.histogram(np.array(latencies_ms))


def _with_pairs(window: MetricWindow, pairs: Sequence[ShadowPair]) -> MetricWindow:
    if not pairs:
        return window
    together = window.pairs + len(pairs)
    before = (window.score_distance or 0.0) * window.pairs
    return replace(
        window,
        pairs=together,
        agreeing=window.agreeing + sum(pair.agree for pair in pairs),
        score_distance=(before + sum(pair.score_distance for pair in pairs)) / together,
    )


def _stability_index(window: MetricWindow) -> float | None:
    candidate, stable = window.candidate.labels, window.stable.labels
    if not candidate or not stable:
        return None
    names = sorted({*candidate, *stable})
    counts = [
        np.array([labels.get(name, 0) for name in names], dtype=np.float64)
        for labels in (candidate, stable)
    ]
    return float(tags.index_of(*counts))
