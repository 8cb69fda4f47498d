"""What an archive's record of its training says of how good the version is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_FIGURES = frozenset({"epoch", "items", "map_labels"})


@dataclass(frozen=True)
class EvaluatedFigure:
    """A figure on the validation data of its training. ``low``, ``high``: of its interval (95 %);
    None where the record has none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def evaluated_figures(training: Mapping[str, Any] | None) -> list[EvaluatedFigure]:
    """Return the figures of the best epoch's weights; none where the manifest holds no record.

    Records of before there were intervals have the figures of each epoch, and which one chose the
    best.
    """
    record = training or {}
    evaluation = record.get("evaluation")
    figures = evaluation if isinstance(evaluation, dict) else _best_epoch(record)
    intervals = figures.get("intervals_95")
    return [
        EvaluatedFigure(name, value, *_interval(intervals, name))
        for name, value in figures.items()
        if _is_number(value) and name not in NOT_FIGURES
    ]


def _best_epoch(record: Mapping[str, Any]) -> Mapping[str, Any]:
    epochs, best_by = record.get("epochs"), record.get("best_by")
    if not isinstance(epochs, list) or not isinstance(best_by, str):
        return {}
    candidates = [
        each for each in epochs if isinstance(each, dict) and _is_number(each.get(best_by))
    ]
    best = max(candidates, key=lambda each: each[best_by], default={})
    return {name: value for name, value in best.items() if not name.startswith("train")}


def _interval(intervals: object, name: str) -> tuple[float | None, float | None]:
    pair = intervals.get(name) if isinstance(intervals, dict) else None
    if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)):
        return pair[0], pair[1]
    return None, None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
