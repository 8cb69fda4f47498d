"""Present the results of stress runs as tables and sentences."""

from collections.abc import Sequence

from vlserve.loadgen.max_rate import LimitResult
from vlserve.loadgen.stage_times import STAGES, WhereTimeWent
from vlserve.loadgen.stress_run import CLIENT_IS_LATE, StressResult
from vlserve.loadgen.stress_summary import LoadSummary

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column heads, rows."""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _counts(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts) or "none"


def _column(figures: LoadSummary) -> list[str]:
    versions = [(f"version {version}", count) for version, count in figures.versions.items()]
    return [
        str(figures.requests),
        _counts(list(figures.failures.items())),
        f"{figures.error_rate:.3%}",
        f"{figures.rps:.1f}/s",
        _ms(figures.p50_ms),
        _ms(figures.p95_ms),
        _ms(figures.p99_ms),
        _ms(figures.max_ms),
        _ms(figures.longest_gap_ms),
        _counts(versions),
    ]


FIGURES = (
    "requests",
    "failures",
    "error rate",
    "right answers",
    "p50",
    "p95",
    "p99",
    "max",
    "longest stall",
    "answers by",
)


def run_table(result: StressResult) -> Table:
    """Return one row per number, with a column for the judged time and one for the warm-up."""
    figures, warm_up = _column(result.figures), _column(result.warm_up)
    client = result.client
    several = "1 process" if client.processes == 1 else f"{client.processes} processes, busiest"
    core = f"{several} {client.cpu_share:.0%} of a core"
    rows = [list(row) for row in zip(FIGURES, figures, warm_up, strict=True)]
    rows.append(["client", f"{core}, late p99 {client.late_p99_ms:.1f} ms", ""])
    return ("", result.load, "warm-up"), rows


def stage_table(breakdown: WhereTimeWent) -> Table:
    """Return one row per stage: mean of all requests, and of the slowest 1 %."""
    columns = (breakdown.all, breakdown.slowest)
    rows = [[stage, *(_ms(means.stage_ms[stage]) for means in columns)] for stage in STAGES]
    rows.append(["together", *(_ms(means.latency_ms) for means in columns)])
    return ("WHERE THE TIME WENT", "MEAN", f"SLOWEST {breakdown.slowest.requests}"), rows


def limit_table(limit: LimitResult) -> Table:
    """Return one row per step, in the order of the rates."""
    rows = [
        (
            f"{step.rate_per_s:g}/s",
            "held" if step.held else "broke",
            f"{step.result.figures.rps:.1f}/s",
            f"{step.result.figures.error_rate:.3%}",
            _ms(step.result.figures.p50_ms),
            _ms(step.result.figures.p99_ms),
            _ms(step.result.figures.longest_gap_ms),
            f"{step.result.client.cpu_share:.0%}",
        )
        for step in sorted(limit.steps, key=lambda step: step.rate_per_s)
    ]
    heads = ("RATE", "", "ANSWERED", "ERRORS", "P50", "P99", "LONGEST STALL", "CLIENT CPU")
    return heads, rows


def limit_verdict(limit: LimitResult) -> str:
    """Return one sentence: the highest rate that held."""
    if limit.highest_held_per_s is None:
        return f"no rate held, not even {limit.lowest_broken_per_s:g} requests/s"
    sentence = f"highest rate that held: {limit.highest_held_per_s:g} requests/s"
    if limit.lowest_broken_per_s is None:
        return f"{sentence}; none broke, so the limit is higher"
    doubt = f"; {CLIENT_IS_LATE}" if limit.client_saturated else ""
    return f"{sentence}; {limit.lowest_broken_per_s:g} requests/s broke{doubt}"
