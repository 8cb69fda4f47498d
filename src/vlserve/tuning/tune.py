"""Search the best setting within a time budget, and write it beside the archive."""

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
"""The best setting is measured again, for so many times as long."""


@dataclass(frozen=True)
class TuningResult:
    """The result of the search."""

    slo_p99_ms: float
    points: tuple[Point, ...]
    best: Point | None
    """None: no setting held the limit, or none held it again when it was confirmed."""
    finished: bool
    """Whether all neighbours of the best setting were tried when the search ended."""
    took_s: float
    failed: tuple[str, ...] = ()
    """Settings that could not be loaded, with the reason."""

    @property
    def nearest(self) -> Point | None:
        """The point with the lowest p99, of those without errors and without a saturated client."""
        without_errors = [p for p in self.points if p.held(float("inf"))]
        return min(without_errors, key=lambda point: point.p99_ms or 0.0, default=None)


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
        """Load the setting; return whether that worked, else note why in `failed`."""
        try:
            self.trials.serve(serving)
        except ControlError as error:
            self.failed.append(f"{serving}: {error}")
            return False
        return True

    def curve(self, serving: Serving, start: int) -> None:
        """Load the setting, and measure it under different numbers of connections."""
        self.tried.append(serving)
        self.show(f"{serving}: loading")
        if not self.serve(serving):
            return
        own: list[Point] = []
        while (more := next_connections(own, self.slo_p99_ms, start)) is not None:
            own.append(self.trials.measure(serving, more))
            self.points.append(own[-1])
            self.show(_describe(own[-1], self.slo_p99_ms))
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
) -> TuningResult:
    """Search the setting with the most right answers per second within the limit.

    The best setting is confirmed by a longer run, and chosen where it beats ``start`` in one too:
    the best of many short runs is partly luck.

    Args:
        trials: Loads and measures settings.
        slo_p99_ms: The limit of the p99.
        start: The first setting; it is measured in any case.
        cores: Of the machine.
        seconds: Time budget; a running measurement is finished.
        run_s: Time of each measurement.
        show: Gets messages about the progress.
        clock: Seconds of a monotonic clock.
    """
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
        baseline = _confirmed(search, own, CONFIRMED * run_s)
        best = best if baseline is None or best.rps > GAIN * baseline.rps else baseline
    return TuningResult(
        slo_p99_ms=slo_p99_ms,
        points=tuple(search.points),
        best=best,
        finished=finished,
        took_s=clock() - began,
        failed=tuple(search.failed),
    )


def _confirmed(search: _Search, points: Sequence[Point], seconds: int) -> Point | None:
    """Measure the best point again for ``seconds``; return the first one that holds again.

    One that breaks the limit, or cannot be loaded again, gives way to the next best.
    """
    candidates = list(points)
    while (best := best_point(candidates, search.slo_p99_ms)) is not None:
        search.show(f"{best.serving}: confirming with {best.connections} connections")
        if not search.serve(best.serving):
            candidates = [point for point in candidates if point.serving != best.serving]
            continue
        repeat = search.trials.measure(best.serving, best.connections, seconds)
        search.points.append(repeat)
        search.show(_describe(repeat, search.slo_p99_ms))
        if repeat.held(search.slo_p99_ms):
            return repeat
        candidates = [
            p for p in candidates if p.serving != best.serving or p.connections < best.connections
        ]
    return None


def write_tuning(trials: Trials, result: TuningResult) -> tuple[Path, Path]:
    """Write the tuning and its plot beside the archive; ``result`` has a best point."""
    best = result.best
    assert best is not None and best.p50_ms is not None and best.p99_ms is not None
    measurement = Measured(
        connections=best.connections, rps=best.rps, p50_ms=best.p50_ms, p99_ms=best.p99_ms
    )
    tuning: Tuning = trials.tuning(best.serving, result.slo_p99_ms, measurement)
    file = tuning_file(trials.archive)
    file.write_text(tuning.model_dump_json(indent=2) + "\n", encoding="utf-8")
    picture = file.with_suffix(".png")
    plot_curves(picture, result.points, best, result.slo_p99_ms)
    return file, picture


def _describe(point: Point, slo_p99_ms: float) -> str:
    p99 = "no answer" if point.p99_ms is None else f"p99 {point.p99_ms:.1f} ms"
    word = point.verdict(slo_p99_ms)
    return f"{point.serving}: {point.connections} connections, {point.rps:.1f}/s, {p99}: {word}"
