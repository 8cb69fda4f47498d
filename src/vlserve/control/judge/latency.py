"""Is the candidate slower than stable, at the median and in the tail?

For a quantile level (0.5, 0.99) the threshold is stable's recent quantile. A request to stable
is a hit if it took longer than the threshold, one to the candidate if it took longer than
(1 + margin) times that; vlserve.control.judge.two_sample judges the hits. Null: the candidate's
latency / (1 + margin) is stochastically no larger than stable's at the same time. Under it the bet
is fair whatever the threshold, so long as that comes from before the block: an inexact or outdated
quantile costs power, never the guarantee. (Two-sample testing with payoffs that are learnt on the
way: Shekhar & Ramdas 2023, "Nonparametric two-sample testing by betting", IEEE Trans. Inf. Theory.)

Quantiles come from a histogram of fixed size, its buckets 6 % wide (as in Masson, Rim & Lee 2019,
"DDSketch") and interpolated, in which older requests fade: however long the release, within 6 % of
the sample's quantile from 0.1 ms to 5 minutes. What is counted against a threshold is exact.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlserve.control.judge import two_sample
from vlserve.control.judge.capital import Array, JsonArray
from vlserve.control.judge.two_sample import MEMORY, Comparison, Counts, Mask

SMALLEST_MS = 0.1
GROWTH = 1.06
BUCKETS = 256
LEARNING = 50
"""Stable requests to see before there is a threshold to bet on."""


class Timed(NamedTuple):
    """One block of answered requests; arrays (..., requests). Failed ones are in neither mask."""

    latency_ms: Array
    candidate: Mask
    stable: Mask


@dataclass(frozen=True, eq=False)
class Latency:
    """Histograms (..., BUCKETS) of recent latencies by version, and one gate a quantile."""

    candidate: JsonArray
    stable: JsonArray
    p50: Comparison
    p99: Comparison


def start(releases: tuple[int, ...] = ()) -> Latency:
    empty = np.zeros((*releases, BUCKETS))
    return Latency(
        candidate=empty,
        stable=empty,
        p50=two_sample.start(0.5, 200, releases),
        p99=two_sample.start(0.01, 200, releases),
    )


def settle(latency: Latency, block: Timed, p50_margin: float, p99_margin: float) -> Latency:
    """Pay out one block, then learn from it."""
    enough = (latency.stable.sum(axis=-1) >= LEARNING)[..., np.newaxis]
    candidate, stable = block.candidate & enough, block.stable & enough
    p50_ms, p99_ms = quantiles_ms(latency.stable, 0.5, 0.99)

    def judge(comparison: Comparison, threshold_ms: Array, margin: float) -> Comparison:
        tolerance = np.where(block.candidate, 1 + margin, 1.0)
        slow = block.latency_ms > threshold_ms[..., np.newaxis] * tolerance
        return two_sample.settle(comparison, Counts.of(candidate, stable, slow))

    return Latency(
        candidate=_learn(latency.candidate, block.latency_ms, block.candidate),
        stable=_learn(latency.stable, block.latency_ms, block.stable),
        p50=judge(latency.p50, p50_ms, p50_margin),
        p99=judge(latency.p99, p99_ms, p99_margin),
    )


def quantiles_ms(histogram: Array, *levels: float) -> tuple[Array, ...]:
    """Return one array (...) a level; the smallest latency where the histogram is empty."""
    counts = np.cumsum(histogram, axis=-1)
    return tuple(_quantile_ms(counts, level) for level in levels)


def _quantile_ms(counts: Array, level: float) -> Array:
    """Return a quantile (...); ``counts`` (..., BUCKETS): cumulative."""
    target = level * counts[..., -1:]
    bucket = np.minimum((counts < target).sum(axis=-1, keepdims=True), BUCKETS - 1)
    above = np.take_along_axis(counts, bucket, axis=-1)
    below = np.where(bucket > 0, np.take_along_axis(counts, np.maximum(bucket - 1, 0), axis=-1), 0)
    part = (target - below) / np.where(above > below, above - below, 1.0)
    quantile: Array = (SMALLEST_MS * GROWTH ** (bucket + part))[..., 0]
    return quantile


def histogram(latency_ms: Array) -> Array:
    """Count how many requests are in each bucket."""
    return np.bincount(_bucket(latency_ms), minlength=BUCKETS).astype(np.float64)


def _bucket(latency_ms: Array) -> NDArray[np.int64]:
    position = np.log(np.maximum(latency_ms, SMALLEST_MS) / SMALLEST_MS) / np.log(GROWTH)
    bucket: NDArray[np.int64] = np.minimum(position.astype(np.int64), BUCKETS - 1)
    return bucket


def _learn(histogram: Array, latency_ms: Array, mask: Mask) -> Array:
    """Fade, then add the masked latencies of the block."""
    bucket = _bucket(latency_ms)
    release = np.arange(histogram.size // BUCKETS)[:, np.newaxis] * BUCKETS
    flat = (bucket.reshape(len(release), -1) + release)[mask.reshape(len(release), -1)]
    counts = np.bincount(flat, minlength=histogram.size).reshape(histogram.shape)
    result: Array = histogram * MEMORY + counts
    return result
