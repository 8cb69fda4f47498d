"""Find the highest arrival rate at which a served model holds its limits."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path

from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import Show, StressResult, run_stress

START_RATE_PER_S = 8.0
LOWEST_RATE_PER_S = 0.5
MAX_STEPS = 16
PRECISION = 1.1
"""The search ends when the lowest rate that broke is at most this many times the highest held."""


@dataclass(frozen=True)
class Step:
    """One rate, and the run at it."""

    rate_per_s: float
    held: bool
    result: StressResult


@dataclass(frozen=True)
class LimitResult:
    """The result of the search. limit.json holds the same, under these names."""

    highest_held_per_s: float | None
    """None: no rate held."""
    lowest_broken_per_s: float | None
    """None: no rate broke; the limit is higher than what was tried."""
    client_saturated: bool
    """In the step that broke, the load generator was late or at its own limit."""
    steps: tuple[Step, ...]
    result: Path


def bounds(runs: Sequence[tuple[float, bool]]) -> tuple[float | None, float | None]:
    """Return the highest rate that held and the lowest that broke.

    A rate that held above one that broke does not count: the server does not hold all rates below
    it. ``runs`` are pairs of a rate and whether it held.
    """
    ceiling = min((rate for rate, ok in runs if not ok), default=None)
    ok_rates = [rate for rate, ok in runs if ok and (ceiling is None or rate < ceiling)]
    return max(ok_rates, default=None), ceiling


def next_rate(
    runs: Sequence[tuple[float, bool]],
    start: float = START_RATE_PER_S,
    precision: float = PRECISION,
) -> float | None:
    """Return the rate to try next; None when the limit is known well enough.

    Rates are doubled until one breaks, halved until one holds, then the geometric middle is taken.

    Args:
        runs: Pairs of a rate and whether it held.
        start: The first rate.
        precision: The lowest rate that broke is at most so many times the highest that held.
    """
    highest_ok, ceiling = bounds(runs)
    if len(runs) >= MAX_STEPS:
        return None
    if highest_ok is None and ceiling is None:
        return start
    if ceiling is None:
        assert highest_ok is not None
        return highest_ok * 2
    if highest_ok is None:
        return ceiling / 2 if ceiling / 2 >= LOWEST_RATE_PER_S else None
    return float(f"{sqrt(highest_ok * ceiling):.3g}") if ceiling / highest_ok > precision else None


def _runs(steps: Sequence[Step]) -> list[tuple[float, bool]]:
    return [(step.rate_per_s, step.held) for step in steps]


def _word(step: Step) -> str:
    return "held" if step.held else f"broke: {', '.join(step.result.breaches)}"


def find_limit(
    plan: StressPlan,
    out_dir: Path,
    show: Show = lambda message: None,
    precision: float = PRECISION,
) -> LimitResult:
    """Run ``plan`` open loop at one rate after the other, and return the highest that held.

    Takes about ten steps of duration + warm-up + 2 s, and up to the request timeout more for one
    that breaks. Raises what `run_stress` raises.

    Args:
        plan: The run of each step; its rate is the first one (8 requests/s where it names users).
        out_dir: Gets a folder for each step, and limit.json.
        show: Gets messages about the progress.
        precision: See `next_rate`.
    """
    steps: list[Step] = []
    start = plan.rate_per_s or START_RATE_PER_S
    while (rate := next_rate(_runs(steps), start, precision)) is not None:
        number = len(steps) + 1
        result = run_stress(
            replace(plan, users=None, rate_per_s=rate),
            out_dir / f"step-{number:02d}-{rate:g}",
            show,
        )
        steps.append(Step(rate, result.passed, result))
        show(f"step {number}, {rate:g} requests/s: {_word(steps[-1])}")
    highest_ok, ceiling = bounds(_runs(steps))
    limit = LimitResult(
        highest_held_per_s=highest_ok,
        lowest_broken_per_s=ceiling,
        client_saturated=any(
            step.result.client_saturated for step in steps if step.rate_per_s == ceiling
        ),
        steps=tuple(steps),
        result=out_dir.resolve() / "limit.json",
    )
    text = json.dumps(asdict(limit), default=str, ensure_ascii=False, indent=2)
    limit.result.write_text(text + "\n", encoding="utf-8")
    return limit
