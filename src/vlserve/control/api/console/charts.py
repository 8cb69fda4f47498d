"""Figures as points of a picture: what the templates draw as SVG. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 160
"""Of a plot, in units of its view box."""
SPARK_WIDTH, SPARK_HEIGHT = 120, 24

Series = Sequence[tuple[str, Sequence[float | None]]]
"""Name -> values over one time; None: no figure then."""


@dataclass(frozen=True)
class Line:
    """One line of a plot. ``points``: as SVG's polyline takes them; empty without figures."""

    name: str
    points: str
    last: float | None


@dataclass(frozen=True)
class Plot:
    """Lines over one time, with the values at the bottom and the top.

    ``rule``: the height of a line across, as of a threshold; None without one.
    """

    lines: tuple[Line, ...]
    bottom: float
    top: float
    rule: float | None = None


def sparkline(values: Sequence[float]) -> str:
    """Return the points of a small line from left to right, from 0 at the bottom."""
    top = max(values, default=0.0) or 1.0
    return _points([value / top for value in values], SPARK_WIDTH, SPARK_HEIGHT)


def plot(series: Series) -> Plot:
    """Draw series from 0 at the bottom."""
    top = max(_known(series), default=0.0) or 1.0
    return Plot(_lines(series, lambda value: value / top), 0.0, top)


def log_plot(series: Series, threshold: float) -> Plot:
    """Draw series on a log axis from 0.01 to over the threshold, across which a line goes."""
    highest = min(12.0, math.log10(max([1.0, *_known(series)])))
    bottom, top = -2.0, max(math.log10(threshold) + 0.5, highest)

    def height(value: float) -> float:
        return min(1.0, max(0.0, (math.log10(max(value, 1e-9)) - bottom) / (top - bottom)))

    rule = round(HEIGHT * (1 - height(threshold)), 1)
    return Plot(_lines(series, height), 10**bottom, 10**top, rule)


def _known(series: Series) -> list[float]:
    return [value for _, values in series for value in values if value is not None]


def _lines(series: Series, height: Callable[[float], float]) -> tuple[Line, ...]:
    """Return the lines of a plot. ``height``: value -> from 0 to 1."""
    return tuple(
        Line(
            name,
            _points([None if v is None else height(v) for v in values], WIDTH, HEIGHT),
            _last(values),
        )
        for name, values in series
    )


def _points(heights: Sequence[float | None], width: int, height: int) -> str:
    """Return points for heights from 0 to 1, evenly spread over ``width``."""
    step = width / max(1, len(heights) - 1)
    return " ".join(
        f"{number * step:.1f},{height * (1 - value):.1f}"
        for number, value in enumerate(heights)
        if value is not None
    )


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
