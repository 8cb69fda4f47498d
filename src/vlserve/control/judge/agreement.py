"""Does the candidate answer like stable, on the same requests? Evidence: shadow pairs.

Top-1 agreement: a confidence sequence for a Bernoulli rate, by Robbins' beta mixture: all rates p
at which  B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k)) < 1 / alpha  (Robbins 1970; Howard,
Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences").
With probability 1 - alpha it holds the true rate at all looks at once, so its lower bound may open
the gate and its upper bound may raise the alarm, both for one alpha.

Score distance: a mean of numbers in [0, 1], null: mean <= ceiling, by betting (Waudby-Smith &
Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86): a bet l makes
1 + l (x - ceiling) of 1, which is worth at most 1 on average while the mean is at most the ceiling.
"""

from dataclasses import dataclass, replace

import numpy as np

from vlserve.control.judge import capital
from vlserve.control.judge.capital import Array, JsonArray

PRIOR = 0.5
BETS = np.array([0.1, 0.3, 0.6, 0.9])
"""Fractions of the largest bet that cannot lose more than it has."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """Pairs, and those that agree; ``peak``: highest log e-value against the floor. All (...)."""

    pairs: JsonArray
    agreeing: JsonArray
    peak: JsonArray


@dataclass(frozen=True, eq=False)
class ScoreDistance:
    """``purses`` (..., bets + 1); pairs, the sum of their distances, the peak (...)."""

    purses: JsonArray
    pairs: JsonArray
    total: JsonArray
    peak: JsonArray


def start_agreement(releases: tuple[int, ...] = ()) -> Agreement:
    zero = np.zeros(releases)
    return Agreement(zero, zero, zero)


def start_score_distance(releases: tuple[int, ...] = ()) -> ScoreDistance:
    zero = np.zeros(releases)
    return ScoreDistance(capital.start(len(BETS), releases), zero, zero, zero)


def settle_agreement(agreement: Agreement, pairs: Array, matches: Array, floor: float) -> Agreement:
    agreement = replace(
        agreement, pairs=agreement.pairs + pairs, agreeing=agreement.agreeing + matches
    )
    return replace(agreement, peak=np.maximum(agreement.peak, log_e_below(agreement, floor)))


def settle_score_distance(score: ScoreDistance, distances: Array, ceiling: float) -> ScoreDistance:
    """Pay out one batch of distances, (..., pairs)."""
    stakes = BETS / ceiling
    gains = np.log1p(stakes * (distances[..., np.newaxis] - ceiling)).sum(axis=-2)
    purses = capital.settle(score.purses, gains)
    return ScoreDistance(
        purses=purses,
        pairs=score.pairs + distances.shape[-1],
        total=score.total + distances.sum(axis=-1),
        peak=np.maximum(score.peak, capital.log_e(purses)),
    )


def log_e_below(agreement: Agreement, floor: float) -> Array:
    """Log e-value of "the rate is under ``floor``", (...); 0 while the pairs say otherwise."""
    below = agreement.agreeing < floor * agreement.pairs
    log_e = log_e_against(agreement.pairs, agreement.agreeing, floor)
    evidence: Array = np.where(below, log_e, 0.0)
    return evidence


def log_e_against(pairs: Array, matches: Array, rate: float) -> Array:
    """Log e-value against "the rate is exactly ``rate``", (...)."""
    from scipy.special import betaln, xlog1py, xlogy

    rest = pairs - matches
    mixture = betaln(PRIOR + matches, PRIOR + rest) - betaln(PRIOR, PRIOR)
    evidence: Array = mixture - xlogy(matches, rate) - xlog1py(rest, -rate)
    return evidence


def bounds(pairs: float, matches: float, alpha: float) -> tuple[float, float]:
    """Return the confidence sequence now: lower and upper bound of the agreement rate."""
    from scipy.optimize import brentq

    if pairs == 0:
        return 0.0, 1.0

    def excess(rate: float) -> float:
        return float(log_e_against(np.array(pairs), np.array(matches), rate) + np.log(alpha))

    middle, edge = matches / pairs, 1e-12
    lower = 0.0 if matches == 0 else brentq(excess, edge, max(middle, 2 * edge))
    upper = 1.0 if matches == pairs else brentq(excess, min(middle, 1 - 2 * edge), 1 - edge)
    return float(lower), float(upper)
