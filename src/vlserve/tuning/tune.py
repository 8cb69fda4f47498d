"""The search itself, bounded in time, and the files that it leaves beside the archive."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlserve.control.tuning import Measured, Serving, Tuning, tuning_file
from vlserve.errors import ControlError
from vlserve.tuning.plots import plot_curves
from vlserve.tuning.search import GAIN, Point, best_point, next_connections, next_serving
from vlserve.tuning.trials import Show, Trials

CONFIRMED = 3
"""The chosen setting is measured for so many times as long as the others."""


@dataclass(frozen=True)
class Found:
    """``best``: None where nothing that was tried held the limit, or none held it again when it
    was confirmed."""

    slo_p99_ms: float
    points: tuple[Point, ...]
    best: Point | None
    finished: bool
    """Whether no neighbour of the best was left to try when the search ended."""
    took_s: float
    failed: tuple[str, ...] = ()
    """Settings that could not be loaded, with the reason."""

    @property
    def nearest(self) -> Point | None:
        """The lowest p99 of all without an error, and of the setting rather than of the client."""
        whole = [p for p in self.points if p.held(float("inf"))]
        return min(whole, key=lambda point: point.p99_ms or 0.0, default=None)


@dataclass
class _Search:
    trials: Trials
    slo_p99_ms: float
    until: float
    show: Show
    clock: Callable[[], float]
    points: list[Point] = field(default_factory=list)
    tried: list[Serving] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def over(self) -> bool:
        return self.clock() > self.until

    def best(self) -> Point | None:
        return best_point(self.points, self.slo_p99_ms)

    def serve(self, serving: Serving) -> bool:
        """Whether it is loaded so; where it is not, `failed` says why."""
        try:
            self.trials.serve(serving)
        except ControlError as error:
            self.failed.append(f"{serving}: {error}")
            return False
        return True

    def curve(self, serving: Serving, start: int) -> None:
        """Load the setting, and measure it under more and more connections."""
        self.tried.append(serving)
        self.show(f"{serving}: loading")
        if not self.serve(serving):
            return
        own: list[Point] = []
        while (more := next_connections(own, self.slo_p99_ms, start)) is not None:
            own.append(self.trials.measure(serving, more))
            self.points.append(own[-1])
            self.show(_said(own[-1], self.slo_p99_ms))
            if self.over():
                return


def tune(
    trials: Trials,
    slo_p99_ms: float,
    start: Serving,
    cores: int,
    seconds: float,
    run_s: int,
    show: Show = lambda message: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Search from ``start`` for about ``seconds``; at the least one setting is measured. What seems
    best is confirmed by a longer run, and is chosen where it is better than ``start`` in one: the
    best of many short runs is partly luck."""
    began = clock()
    search = _Search(trials, slo_p99_ms, began + seconds, show, clock)
    search.curve(start, start=1)
    finished = False
    while not search.over():
        best = search.best()
        around = best.serving if best else start
        serving = next_serving(search.tried, around, cores)
        if serving is None:
            finished = True
            break
        search.curve(serving, start=max(1, best.connections // 2) if best else 1)
    best = _confirmed(search, search.points, CONFIRMED * run_s)
    if best is not None and best.serving != start:
        own = [point for point in search.points if point.serving == start]
        kept = _confirmed(search, own, CONFIRMED * run_s)
        best = best if kept is None or best.rps > GAIN * kept.rps else kept
    return Found(
        slo_p99_ms=slo_p99_ms,
        points=tuple(search.points),
        best=best,
        finished=finished,
        took_s=clock() - began,
        failed=tuple(search.failed),
    )


def _confirmed(search: _Search, points: Sequence[Point], seconds: int) -> Point | None:
    """The best of the points measured again, for longer; while that breaks the limit, or cannot be
    loaded again, the next best."""
    left = list(points)
    while (best := best_point(left, search.slo_p99_ms)) is not None:
        search.show(f"{best.serving}: confirming with {best.connections} connections")
        if not search.serve(best.serving):
            left = [point for point in left if point.serving != best.serving]
            continue
        again = search.trials.measure(best.serving, best.connections, seconds)
        search.points.append(again)
        search.show(_said(again, search.slo_p99_ms))
        if again.held(search.slo_p99_ms):
            return again
        left = [p for p in left if p.serving != best.serving or p.connections < best.connections]
    return None


def write_tuning(trials: Trials, found: Found) -> tuple[Path, Path]:
    """The tuning beside the archive, and its picture; ``found`` has a best point."""
    best = found.best
    assert best is not None and best.p50_ms is not None and best.p99_ms is not None
    measured = Measured(
        connections=best.connections, rps=best.rps, p50_ms=best.p50_ms, p99_ms=best.p99_ms
    )
    tuning: Tuning = trials.tuning(best.serving, found.slo_p99_ms, measured)
    file = tuning_file(trials.archive)
    file.write_text(tuning.model_dump_json(indent=2) + "\n", encoding="utf-8")
    picture = file.with_suffix(".png")
    plot_curves(picture, found.points, best, found.slo_p99_ms)
    return file, picture


def _said(point: Point, slo_p99_ms: float) -> str:
    p99 = "no answer" if point.p99_ms is None else f"p99 {point.p99_ms:.1f} ms"
    word = point.verdict(slo_p99_ms)
    return f"{point.serving}: {point.connections} connections, {point.rps:.1f}/s, {p99}: {word}"
