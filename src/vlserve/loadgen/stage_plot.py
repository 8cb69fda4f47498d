"""Plot where the time of requests went."""

from pathlib import Path

from vlserve.loadgen.stage_times import STAGES, WhereTimeWent


def plot_stages(path: Path, breakdown: WhereTimeWent, title: str) -> None:
    """Write a PNG with two stacked bars: the mean of all requests, and of the slowest 1 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = {
        f"mean of all {breakdown.all.requests}": breakdown.all,
        f"mean of the slowest {breakdown.slowest.requests}": breakdown.slowest,
    }
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for row, means in enumerate(bars.values()):
        left = 0.0
        for colour, stage in enumerate(STAGES):
            width = max(means.stage_ms[stage], 0.0)
            label = stage if row == 0 else None
            axes.barh(row, width, left=left, color=f"C{colour}", label=label)
            if width > 0.06 * breakdown.slowest.latency_ms:
                axes.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center")
            left += width
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title(title)
    axes.legend(ncols=len(STAGES), loc="upper center", bbox_to_anchor=(0.45, -0.28), frameon=False)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
