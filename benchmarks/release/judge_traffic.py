"""What the requests of each simulated scenario are like: with nothing wrong, and with trouble."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import lognorm

from vlserve.control.judge.observation import BLOCK
from vlserve.control.judge.policy import Gates, Policy

Array = NDArray[np.float64]
Latencies = Callable[[np.random.Generator, tuple[int, int], int], Array]

MEDIAN_MS, SIGMA = 20.0, 0.3
STABLE_MS = lognorm(s=SIGMA, scale=MEDIAN_MS)
ZIPF = 1 / np.arange(1, 21)
STABLE_TAGS = ZIPF / ZIPF.sum()


def usual_ms(rng: np.random.Generator, shape: tuple[int, int], look: int) -> Array:
    return MEDIAN_MS * np.exp(SIGMA * rng.standard_normal(shape))


def slower_ms(factor: float) -> Latencies:
    return lambda rng, shape, look: factor * usual_ms(rng, shape, look)


def slower_to_the_margins(gates: Gates) -> Latencies:
    """The slowest tenth slower by the p99 gate's margin, the others by the p50 gate's."""

    def draw(rng: np.random.Generator, shape: tuple[int, int], look: int) -> Array:
        ms = usual_ms(rng, shape, look)
        tail = ms > STABLE_MS.ppf(0.9)
        return ms * np.where(tail, 1 + gates.latency_p99.margin, 1 + gates.latency_p50.margin)

    return draw


def slow_tail_ms(share: float, slow_down: Callable[[Array], Array]) -> Latencies:
    """``share`` of the requests, at random, are slowed down."""

    def draw(rng: np.random.Generator, shape: tuple[int, int], look: int) -> Array:
        ms = usual_ms(rng, shape, look)
        return np.where(rng.random(shape) < share, slow_down(ms), ms)

    return draw


def delay_that_doubles_p99(share: float) -> float:
    """Milliseconds which, added to ``share`` of the requests, make p99 twice what it was."""
    p99 = STABLE_MS.ppf(0.99)
    return float(
        brentq(
            lambda d: (
                (1 - share) * STABLE_MS.sf(2 * p99) + share * STABLE_MS.sf(2 * p99 - d) - 0.01
            ),
            0.0,
            4 * p99,
        )
    )


def factor_that_doubles_p99(share: float) -> float:
    p99 = STABLE_MS.ppf(0.99)
    return float(
        brentq(
            lambda f: (
                (1 - share) * STABLE_MS.sf(2 * p99) + share * STABLE_MS.sf(2 * p99 / f) - 0.01
            ),
            1.0,
            100.0,
        )
    )


def daily_wave(rate: float) -> Callable[[int], float]:
    """A rate that swings tenfold, with an outage of 1 look in 500 in which a third fails."""
    return lambda look: 0.33 if look % 500 == 250 else rate * 10 ** np.sin(look / 300)


def waving_ms(rng: np.random.Generator, shape: tuple[int, int], look: int) -> Array:
    return float(2 + np.sin(look / 200)) * usual_ms(rng, shape, look)


@dataclass(frozen=True)
class Traffic:
    """What the requests of one scenario are like. Rates may depend on the look."""

    name: str
    weights: tuple[int, ...] = (5, 25, 50)
    stable_fails: Callable[[int], float] = lambda look: 0.001
    candidate_fails: Callable[[int], float] = lambda look: 0.001
    stable_ms: Latencies = usual_ms
    candidate_ms: Latencies = usual_ms
    candidate_tags: Array = field(default_factory=lambda: STABLE_TAGS)
    candidate_lost: float = 0.0
    """Share of the candidate's requests that leave no log line."""
    pairs_per_look: int = 2
    agreement: float = 0.95
    distance: float = 0.05


def nulls(policy: Policy) -> Sequence[Traffic]:
    gates = policy.gates
    shift = gates.tags.margin * np.eye(len(STABLE_TAGS))
    return (
        Traffic("A/A: the same version twice"),
        Traffic(
            "A/A, rates and latency swing tenfold and threefold, outages",
            stable_fails=daily_wave(0.001),
            candidate_fails=daily_wave(0.001),
            stable_ms=waving_ms,
            candidate_ms=waving_ms,
        ),
        Traffic(
            "every difference just at its margin, agreement and distance at their limits",
            candidate_fails=lambda look: 0.001 + gates.errors.margin,
            candidate_ms=slower_to_the_margins(gates),
            candidate_tags=STABLE_TAGS + shift[-1] - shift[0],
            agreement=gates.agreement.floor,
            distance=gates.score_distance.ceiling,
        ),
    )


def troubles() -> Sequence[tuple[Traffic, str, int]]:
    """Scenario, the gate that must find it, and within how many candidate requests or pairs."""
    delay, factor = delay_that_doubles_p99(0.05), factor_that_doubles_p99(0.05)
    failures = [
        Traffic("fails 2 % instead of 0.1 %", (weight,), candidate_fails=lambda look: 0.02)
        for weight in (5, 25, 50)
    ]
    shifted_tags = np.roll(STABLE_TAGS, 3)
    return (
        *((traffic, "errors", 800) for traffic in failures),
        (
            Traffic(
                f"5 % of requests take {delay:.0f} ms longer: p99 doubles",
                (5,),
                candidate_ms=slow_tail_ms(0.05, lambda ms: ms + delay),
            ),
            "latency_p99",
            3000,
        ),
        (
            Traffic(
                f"5 % of requests take {factor:.1f} times as long: p99 doubles",
                (5,),
                candidate_ms=slow_tail_ms(0.05, lambda ms: ms * factor),
            ),
            "latency_p99",
            3000,
        ),
        (
            Traffic("every request takes 1.5 times as long", (5,), candidate_ms=slower_ms(1.5)),
            "latency_p50",
            800,
        ),
        (
            Traffic("one in five candidate requests leaves no log line", (25,), candidate_lost=0.2),
            "sample_ratio",
            3000,
        ),
        (
            Traffic("same top tag in 60 % of pairs", (5,), agreement=0.6),
            "agreement",
            200,
        ),
        (
            Traffic("scores 0.4 apart on average", (5,), distance=0.4),
            "score_distance",
            200,
        ),
        (
            Traffic(
                "answers with other tags (labels shifted by 3)", (5,), candidate_tags=shifted_tags
            ),
            "tags",
            800,
        ),
        (
            Traffic("fails 1 % instead of 0.1 %", (5,), candidate_fails=lambda look: 0.01),
            "errors",
            2500,
        ),
    )


def late_trouble() -> tuple[Traffic, Traffic]:
    """A candidate that goes bad after 2,000 blocks, and what it is like before."""
    late = Traffic(
        f"fails 2 % instead of 0.1 %, after {2000 * BLOCK:,} good requests",
        (5,),
        candidate_fails=lambda look: 0.02,
    )
    return late, Traffic("healthy", (5,))
