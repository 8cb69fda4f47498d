"""Plot throughput against p99, one curve per setting."""

from collections.abc import Sequence
from pathlib import Path

from vlserve.tuning.search import Point


def plot_curves(path: Path, points: Sequence[Point], best: Point, slo_p99_ms: float) -> None:
    """Write a PNG with each setting's points by connections, the limit, and the chosen point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for serving in dict.fromkeys(point.serving for point in points):
        curve = sorted(
            (p for p in points if p.serving == serving and p is not best and p.p99_ms),
            key=lambda point: point.connections,
        )
        places = [(p.rps, p.p99_ms or 0.0) for p in curve]
        axes.plot([x for x, _ in places], [y for _, y in places], "o-", label=str(serving))
        for point, place in zip(curve, places, strict=True):
            axes.annotate(
                str(point.connections), place, (4, 4), textcoords="offset points", fontsize=8
            )
    axes.axhline(slo_p99_ms, color="black", linestyle="--", label=f"limit {slo_p99_ms:g} ms")
    axes.plot([best.rps], [best.p99_ms or 0.0], "k*", markersize=16, label="chosen")
    axes.set_xlabel("answers a second (numbers: connections)")
    axes.set_ylabel("p99, milliseconds")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(title="workers x threads, batch, delay", fontsize=8)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
