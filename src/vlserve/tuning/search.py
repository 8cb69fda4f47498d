"""Choose the next setting to measure, and the best one. Pure.

Two nested searches. For one setting, connections are doubled until the limit breaks or throughput
no longer grows. Among settings, the best known one's neighbours are tried (other workers and
threads, then batch sizes, then delays), until none is better or the time is over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlserve.control.tuning import Serving

MAX_CONNECTIONS = 128
GAIN = 1.03
"""Throughputs within this factor count as equal."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
DELAYS_MS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Point:
    """One setting, measured under one closed loop."""

    serving: Serving
    connections: int
    rps: float
    p50_ms: float | None
    """None: no right answer."""
    p99_ms: float | None
    error_rate: float
    client_saturated: bool = False
    """The load generator was at its own limit: the numbers say nothing about the setting."""

    def held(self, slo_p99_ms: float) -> bool:
        """Tell whether all was answered right, with a p99 of at most ``slo_p99_ms``."""
        if self.client_saturated or self.error_rate > 0:
            return False
        return self.p99_ms is not None and self.p99_ms <= slo_p99_ms

    def verdict(self, slo_p99_ms: float) -> str:
        """Return "held", "broke", or why it is neither."""
        if self.client_saturated:
            return "client saturated"
        return "held" if self.held(slo_p99_ms) else "broke"


def next_connections(points: Sequence[Point], slo_p99_ms: float, start: int) -> int | None:
    """Return the connections to try after ``points`` of one setting; None when its best is known.

    ``start`` comes first: from there down while the limit breaks, and up while throughput grows.
    """
    if not points:
        return start
    by_connections = {point.connections: point for point in points}
    lowest = by_connections[min(by_connections)]
    if not lowest.held(slo_p99_ms):
        return lowest.connections // 2 or None
    most, highest = max(by_connections), by_connections[max(by_connections)]
    if not highest.held(slo_p99_ms) or 2 * most > MAX_CONNECTIONS:
        return None
    before = [point.rps for point in points if point.connections < most]
    if before and highest.rps < GAIN * max(before):
        return None
    return 2 * most


def best_point(points: Sequence[Point], slo_p99_ms: float) -> Point | None:
    """Return the point with the most throughput that held; among equals, the lowest p99."""
    within_limit = [point for point in points if point.held(slo_p99_ms)]
    if not within_limit:
        return None
    enough = max(point.rps for point in within_limit) / GAIN
    return min(
        (point for point in within_limit if point.rps >= enough),
        key=lambda point: (point.p99_ms or 0.0, -point.rps),
    )


def next_serving(servings: Sequence[Serving], best: Serving, cores: int) -> Serving | None:
    """Return the next neighbour of the best setting that was not tried; None when all were."""
    return next((each for each in _neighbours(best, cores) if each not in servings), None)


def _neighbours(serving: Serving, cores: int) -> Iterator[Serving]:
    for workers, threads in _splits(cores):
        yield serving.model_copy(update={"workers": workers, "threads": threads})
    for batch_size in _beside(serving.batch_size, BATCH_SIZES):
        yield serving.model_copy(update={"batch_size": batch_size})
    if serving.max_batch_delay_ms == 0:  # on Triton, where a batch waits for nothing
        return
    for delay_ms in _beside(serving.max_batch_delay_ms, DELAYS_MS):
        yield serving.model_copy(update={"max_batch_delay_ms": delay_ms})


def _splits(cores: int) -> list[tuple[int, int]]:
    """Return pairs of workers and threads that fill the cores, most workers first."""
    return [(cores // threads, threads) for threads in range(1, cores + 1) if cores % threads == 0]


def _beside(value: int, steps: Sequence[int]) -> list[int]:
    """Return the next step up and the next one down."""
    above = [step for step in steps if step > value][:1]
    below = [step for step in steps if step < value][-1:]
    return above + below
