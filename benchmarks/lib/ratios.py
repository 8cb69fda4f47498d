"""From measured cells to ratios, with their noise. Pure, but for the plot."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_COLUMNS = (
    "round",
    "side",
    "precision",
    "connections",
    "per_s",
    "ratio",
    "p50_ms",
    "p99_ms",
    "failures",
    "client_cpus",
    "server_cpus",
)


@dataclass(frozen=True)
class Limit:
    """What the archive's own code did in process, in one round."""

    round: int
    precision: str
    per_s: float
    """Items, all cores together."""
    alone_p50_ms: float
    """One item in one process."""


@dataclass(frozen=True)
class Cell:
    """One server at one number of connections, in one round. ``precision``: of the limit that it is
    held against."""

    round: int
    side: str
    precision: str
    connections: int
    per_s: float
    p50_ms: float
    p99_ms: float
    failures: Mapping[str, int]
    client_cpus: float
    server_cpus: Mapping[str, float]
    """CPUs that its programs took, by name."""


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and their lowest and highest."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        if math.isnan(self.median):
            return "-"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


@dataclass(frozen=True)
class Row:
    """One server at one number of connections, all rounds."""

    side: str
    precision: str
    connections: int
    ratio: Spread
    """Of each round's answers a second to the same round's limit."""
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    failures: Mapping[str, int]
    client_cpus: float
    server_cpus: float
    server_ms: Spread
    """CPU milliseconds that the server's programs took for an answer, the model's with them."""


def spread(values: Sequence[float]) -> Spread:
    """NaN where one of them is."""
    if any(math.isnan(value) for value in values):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(median(values), min(values), max(values))


def rows(cells: Sequence[Cell], limits: Sequence[Limit]) -> list[Row]:
    """In the order in which sides and connections first appear."""
    limit = {(entry.round, entry.precision): entry.per_s for entry in limits}
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.side, cell.connections), []).append(cell)
    sides = list(dict.fromkeys(cell.side for cell in cells))
    keys = sorted(groups, key=lambda key: (sides.index(key[0]), key[1]))
    return [_row(groups[key], limit) for key in keys]


def _row(cells: Sequence[Cell], limit: Mapping[tuple[int, str], float]) -> Row:
    failures: dict[str, int] = {}
    for cell in cells:
        for why, count in cell.failures.items():
            failures[why] = failures.get(why, 0) + count
    return Row(
        cells[0].side,
        cells[0].precision,
        cells[0].connections,
        spread([cell.per_s / limit[cell.round, cell.precision] for cell in cells]),
        spread([cell.per_s for cell in cells]),
        spread([cell.p50_ms for cell in cells]),
        spread([cell.p99_ms for cell in cells]),
        failures,
        median(cell.client_cpus for cell in cells),
        median(sum(cell.server_cpus.values()) for cell in cells),
        spread([_server_ms(cell) for cell in cells]),
    )


def _server_ms(cell: Cell) -> float:
    return 1e3 * sum(cell.server_cpus.values()) / cell.per_s if cell.per_s else math.nan


@dataclass(frozen=True)
class Cost:
    """What one way takes more than another, pair by pair of the rounds."""

    connections: int
    throughput: Spread
    """Share of the other's answers a second that is lost: 0.03 is 3 %."""
    p50_ms: Spread


def costs(cells: Sequence[Cell], side: str, without: str) -> list[Cost]:
    """What ``side`` costs over ``without``, at each number of connections."""
    return [
        Cost(
            connections,
            spread(
                [1 - cell.per_s / plain.per_s if plain.per_s else math.nan for cell, plain in pairs]
            ),
            spread([cell.p50_ms - plain.p50_ms for cell, plain in pairs]),
        )
        for connections, pairs in _pairs(cells, side, without).items()
    ]


def times(cells: Sequence[Cell], side: str, other: str) -> list[tuple[int, Spread]]:
    """How many times the answers of ``other`` it gives, at each number of connections."""
    return [
        (
            connections,
            spread(
                [cell.per_s / plain.per_s if plain.per_s else math.inf for cell, plain in pairs]
            ),
        )
        for connections, pairs in _pairs(cells, side, other).items()
    ]


def cpu_ratios(cells: Sequence[Cell], side: str, other: str) -> list[tuple[int, Spread]]:
    """What share of the CPU of ``other`` it takes for an answer, at each number of connections."""
    return [
        (connections, spread([_server_ms(its) / _server_ms(plain) for its, plain in pairs]))
        for connections, pairs in _pairs(cells, side, other).items()
    ]


def _pairs(cells: Sequence[Cell], side: str, other: str) -> dict[int, list[tuple[Cell, Cell]]]:
    """Connections -> the two of each round."""
    others = {(cell.round, cell.connections): cell for cell in cells if cell.side == other}
    pairs: dict[int, list[tuple[Cell, Cell]]] = {}
    for cell in cells:
        if cell.side == side and (cell.round, cell.connections) in others:
            pair = (cell, others[cell.round, cell.connections])
            pairs.setdefault(cell.connections, []).append(pair)
    return dict(sorted(pairs.items()))


def markdown(table: Sequence[Row]) -> str:
    """Servers down, connections across: the ratios, with lowest and highest round."""
    counts = sorted({row.connections for row in table})
    lines = ["| server | " + " | ".join(f"{count} conn." for count in counts) + " | failures |"]
    lines.append("|---" * (len(counts) + 2) + "|")
    for side in dict.fromkeys(row.side for row in table):
        rows_by_count = {row.connections: row for row in table if row.side == side}
        text = [
            rows_by_count[count].ratio.text() if count in rows_by_count else "-" for count in counts
        ]
        failures = sum(sum(row.failures.values()) for row in rows_by_count.values())
        lines.append(f"| {side} | " + " | ".join(text) + f" | {failures} |")
    return "\n".join(lines)


def details(table: Sequence[Row]) -> str:
    """Every row with its figures, as a Markdown table."""
    heads = (
        "server",
        "conn.",
        "answers/s",
        "p50 ms",
        "p99 ms",
        "client CPUs",
        "server CPUs",
        "server CPU ms an answer",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in table:
        text = (
            row.side,
            str(row.connections),
            row.per_s.text(1),
            row.p50_ms.text(1),
            row.p99_ms.text(0),
            f"{row.client_cpus:.2f}",
            f"{row.server_cpus:.2f}",
            row.server_ms.text(1),
        )
        lines.append("| " + " | ".join(text) + " |")
    return "\n".join(lines)


def as_csv(cells: Sequence[Cell], limits: Sequence[Limit]) -> str:
    """Every cell of every round, nothing left out."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    per_s = {(limit.round, limit.precision): limit.per_s for limit in limits}
    for limit in limits:
        figures = (f"{limit.per_s:.2f}", 1, f"{limit.alone_p50_ms:.2f}")
        writer.writerow((limit.round, "in process", limit.precision, "", *figures, "", "", "", ""))
    for cell in cells:
        writer.writerow(
            (
                cell.round,
                cell.side,
                cell.precision,
                cell.connections,
                f"{cell.per_s:.2f}",
                f"{cell.per_s / per_s[cell.round, cell.precision]:.4f}",
                f"{cell.p50_ms:.2f}",
                f"{cell.p99_ms:.2f}",
                "; ".join(f"{count} x {why}" for why, count in cell.failures.items()),
                f"{cell.client_cpus:.3f}",
                "; ".join(f"{name} {cpus:.2f}" for name, cpus in cell.server_cpus.items()),
            )
        )
    return file.getvalue()


def plot(table: Sequence[Row], path: Path) -> None:
    """Ratio over connections, a line a server, whiskers from the lowest to the highest round."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for side in dict.fromkeys(row.side for row in table):
        side_rows = [row for row in table if row.side == side]
        middle = [row.ratio.median for row in side_rows]
        below = [row.ratio.median - row.ratio.low for row in side_rows]
        above = [row.ratio.high - row.ratio.median for row in side_rows]
        places = [row.connections for row in side_rows]
        axes.errorbar(places, middle, yerr=[below, above], label=side, marker="o", capsize=3)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    counts = sorted({row.connections for row in table})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("connections, closed loop")
    axes.set_ylabel("answers a second, of the in-process limit")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
