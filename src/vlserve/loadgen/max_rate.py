"""The highest arrival rate that a served model holds within its limits."""

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
    """One rate that was tried."""

    rate_per_s: float
    held: bool
    result: StressResult


@dataclass(frozen=True)
class LimitResult:
    """What the search found. limit.json holds the same."""

    highest_held_per_s: float | None
    """None: no rate held."""
    lowest_broken_per_s: float | None
    """None: no rate broke; the limit is higher than what was tried."""
    client_saturated: bool
    """In the step that broke, the load generator was late or at its own limit."""
    steps: tuple[Step, ...]
    result: Path


def bounds(tried: Sequence[tuple[float, bool]]) -> tuple[float | None, float | None]:
    """Highest rate that held and lowest that broke. A rate that held above one that broke does
    not count: the server does not hold everything below it."""
    broken = min((rate for rate, held in tried if not held), default=None)
    held = [rate for rate, ok in tried if ok and (broken is None or rate < broken)]
    return max(held, default=None), broken


def next_rate(
    tried: Sequence[tuple[float, bool]],
    start: float = START_RATE_PER_S,
    precision: float = PRECISION,
) -> float | None:
    """The rate to try after those tried (rate, whether it held): doubled until one breaks, halved
    until one holds, then the geometric middle; None when the limit is known well enough."""
    held, broken = bounds(tried)
    if len(tried) >= MAX_STEPS:
        return None
    if held is None and broken is None:
        return start
    if broken is None:
        assert held is not None
        return held * 2
    if held is None:
        return broken / 2 if broken / 2 >= LOWEST_RATE_PER_S else None
    return float(f"{sqrt(held * broken):.3g}") if broken / held > precision else None


def _tried(steps: Sequence[Step]) -> list[tuple[float, bool]]:
    return [(step.rate_per_s, step.held) for step in steps]


def _word(step: Step) -> str:
    return "held" if step.held else f"broke: {', '.join(step.result.breaches)}"


def find_limit(
    plan: StressPlan,
    out_dir: Path,
    show: Show = lambda message: None,
    precision: float = PRECISION,
) -> LimitResult:
    """Run ``plan`` open loop at one rate after the other, each for its duration, from its own rate
    on (or a low one, where it names users). ``out_dir`` gets a folder for each step, and
    limit.json.

    Errors as `run_stress`. Takes duration + warm-up + 2 s for each step, and up to the request
    timeout more for one that breaks; about ten steps.
    """
    steps: list[Step] = []
    start = plan.rate_per_s or START_RATE_PER_S
    while (rate := next_rate(_tried(steps), start, precision)) is not None:
        number = len(steps) + 1
        result = run_stress(
            replace(plan, users=None, rate_per_s=rate),
            out_dir / f"step-{number:02d}-{rate:g}",
            show,
        )
        steps.append(Step(rate, result.passed, result))
        show(f"step {number}, {rate:g} requests/s: {_word(steps[-1])}")
    held, broken = bounds(_tried(steps))
    limit = LimitResult(
        highest_held_per_s=held,
        lowest_broken_per_s=broken,
        client_saturated=any(
            step.result.client_saturated for step in steps if step.rate_per_s == broken
        ),
        steps=tuple(steps),
        result=out_dir.resolve() / "limit.json",
    )
    text = json.dumps(asdict(limit), default=str, ensure_ascii=False, indent=2)
    limit.result.write_text(text + "\n", encoding="utf-8")
    return limit
