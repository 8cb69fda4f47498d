"""Pictures of where a tagger is right and wrong, and of how a run went, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlserve.training.metrics.tagging import Matrix, average_precisions


def plot_confusion(path: Path, targets: Matrix, scores: Matrix, labels: Sequence[str]) -> None:
    """Plot a confusion matrix. Rows: true labels, columns: best label; colours and numbers count
    items. An item whose label is not among ``labels``, as a question may be, has no row."""
    counts = confusions(targets, scores)
    columns = range(len(labels))
    side = 3 + 0.4 * len(labels)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        count = counts[row, column]
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    names = [_printable(label) for label in labels]
    axes.set_xticks(columns, names, rotation=90)
    axes.set_yticks(columns, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _write(path, figure)


def confusions(targets: Matrix, scores: Matrix) -> Matrix:
    """Return how many items of each label (rows) have which best label (columns); those without
    any label do not count."""
    from sklearn.metrics import confusion_matrix

    known = targets.any(axis=1)
    if not known.any():
        return np.zeros((targets.shape[1],) * 2, dtype=np.int64)
    true, best = targets[known].argmax(axis=1), scores[known].argmax(axis=1)
    counts: Matrix = confusion_matrix(true, best, labels=list(range(targets.shape[1])))
    return counts


def plot_average_precisions(
    path: Path, targets: Matrix, scores: Matrix, labels: Sequence[str]
) -> None:
    """Plot one bar a label that an item has, the best on top, with its number of items."""
    values = average_precisions(targets, scores)
    order = [index for index in np.argsort(values) if not np.isnan(values[index])]
    names = [f"{_printable(labels[index])} ({targets[:, index].sum()})" for index in order]
    figure = _figure(7, 1.5 + 0.25 * len(order))
    axes = figure.add_subplot()
    axes.barh(names, values[order], label="average precision")
    axes.barh(names, targets.mean(axis=0)[order], label="share of items: a guess")
    axes.set_xlim(0, 1)
    axes.legend(loc="lower right")
    _write(path, figure)


def plot_curves(path: Path, lines: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Plot losses and learning rate by step, and figures by epoch, of the lines of a run's log
    whose epochs have ``steps`` steps."""
    within = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "step" not in line]
    figure = _figure(7, 9)
    losses, rate, figures = figure.subplots(3)
    at = [line["epoch"] - 1 + line["step"] / steps for line in within]
    for name in _names(within, ("epoch", "step", "learning_rate")):
        losses.plot(at, [line.get(name, np.nan) for line in within], ".-", label=_printable(name))
    rate.plot(at, [line["learning_rate"] for line in within], ".-")
    ends = [line["epoch"] for line in epochs]
    for name in _names(epochs, ("epoch", "train_loss", "learning_rate", "seconds")):
        values = [line.get(name, np.nan) for line in epochs]
        figures.plot(ends, values, ".-", label=_printable(name))
    for axes, title in ((losses, "losses"), (rate, "learning rate"), (figures, "validation")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    _write(path, figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(path: Path, figure: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _names(lines: Sequence[Mapping[str, Any]], without: Sequence[str]) -> list[str]:
    """Return names of the numbers in some lines, in their order."""
    names = dict.fromkeys(
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name not in without
    )
    return list(names)


def _printable(label: str) -> str:
    """Escape what matplotlib's fonts lack, such as Chinese: else there are empty boxes,
    and no formula where a label has dollar signs."""
    return label.encode("ascii", "backslashreplace").decode("ascii").replace("$", r"\$")
