"""Does something happen to the candidate's requests more often than to stable's?

The heart of four gates: failed; slower than stable's median; slower than its p99; answered with a
tag of a given set. Null: rate(candidate) <= rate(stable) + margin, where both may drift over time.

Requests are judged in blocks. In a block with n candidate and m stable outcomes in {0, 1}, a bet is
worth  S = prod_candidate (1 + g (y - a)) * prod_stable (1 + h (y - b)),  where a - b = margin,
g >= 0 and n g + m h = 0, all fixed before the block's outcomes are seen. It is an e-value: let A
and B be the true rates; since log(1 + x) <= x,
    log E[S] <= n g (A - a) + m h (B - b) = n g ((A - B) - margin) <= 0   under the null.
Any n and m will do, so the allocation may be as unequal as it likes and change at any time, and the
rates may differ from block to block. With margin 0, a = (n p + m q) / (n + m) and
g = (p - a) / (a (1 - a)) this is, bit for bit, the 2x2 e-variable of Turner, Ly & Grünwald 2024,
"Generic E-variables for exact sequential k-sample tests that allow for optional stopping" (J. Stat.
Plan. Inference 230) for the alternative rates p and q. Instead of one plug-in p, bets are spread
over a ladder of odds ratios above stable's recent rate q (vlserve.control.judge.capital).

Where the candidate has all the traffic, nothing of that time is there to compare it with. Then the
null is rate(candidate) <= c + margin, c an upper confidence bound of stable's rate in the release
before, and a bet on the rate p is the likelihood ratio of p against c + margin: an e-value too, so
both kinds of blocks fill the same purses. That c is too low has a probability of CEILING_RISK, once
a release; that all rates rise at that time is not told from the candidate's own.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlserve.control.judge import capital
from vlserve.control.judge.capital import Array, JsonArray

Mask = NDArray[np.bool_]

ODDS_RATIOS = np.array([1.5, 2.5, 4.0, 8.0, 16.0, 64.0, 256.0])
"""The bets: how much higher than stable's (plus margin) the candidate's odds may be."""

MEMORY = 0.995
"""Per block; stable's recent rate looks back over some 200 blocks."""

CEILING_RISK = 0.001
"""That stable's true rate is above the bound which the candidate alone is held against."""


class Counts(NamedTuple):
    """One block: outcomes and how many of them are hits, by version; arrays of one shape."""

    candidate: Array
    candidate_hits: Array
    stable: Array
    stable_hits: Array

    @classmethod
    def of(cls, candidate: Mask, stable: Mask, hit: Mask) -> "Counts":
        """Count along the last axis of masks (..., outcomes)."""
        return cls(
            *(
                mask.sum(axis=-1).astype(np.float64)
                for mask in (candidate, candidate & hit, stable, stable & hit)
            )
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """What one gate has seen. Shapes: ``purses`` (..., bets + 1), all else (...)."""

    purses: JsonArray
    peak: JsonArray
    """The highest log e-value so far: an alarm once raised stays raised."""
    candidate: JsonArray
    candidate_hits: JsonArray
    stable: JsonArray
    stable_hits: JsonArray
    recent: JsonArray
    """Stable's outcomes, older ones fading."""
    recent_hits: JsonArray


def start(expected_rate: float, weight: float, releases: tuple[int, ...] = ()) -> Comparison:
    """Make a test to which ``expected_rate`` of stable counts like ``weight`` outcomes seen before
    the release."""
    zero = np.zeros(releases)
    return Comparison(
        purses=capital.start(len(ODDS_RATIOS), releases),
        peak=zero,
        candidate=zero,
        candidate_hits=zero,
        stable=zero,
        stable_hits=zero,
        recent=zero + weight,
        recent_hits=zero + weight * expected_rate,
    )


def settle(
    comparison: Comparison, block: Counts, margin: float = 0.0, stable_rate: Array | None = None
) -> Comparison:
    """Pay out one block. ``stable_rate`` is what the bets expect of stable, from before the
    block; None: its recent rate. A block that lacks one version is no evidence, but is counted."""
    if stable_rate is None:
        stable_rate = comparison.recent_hits / comparison.recent
    return _paid(comparison, block, log_returns(block, stable_rate, margin))


def settle_alone(comparison: Comparison, block: Counts, margin: float = 0.0) -> Comparison:
    """Pay out one block of a time in which the candidate has all the traffic, against what
    stable's rate was at most before. Without any outcome of stable it is no evidence."""
    from scipy.special import betainccinv

    misses = comparison.stable - comparison.stable_hits
    ceiling = betainccinv(comparison.stable_hits + 1, np.maximum(misses, 1e-9), CEILING_RISK)
    ceiling = np.where(misses > 0, ceiling, 1.0)
    return _paid(comparison, block, log_returns_alone(block, ceiling + margin))


def _paid(comparison: Comparison, block: Counts, log_returns: Array) -> Comparison:
    purses = capital.settle(comparison.purses, log_returns)
    return replace(
        comparison,
        purses=purses,
        peak=np.maximum(comparison.peak, capital.log_e(purses)),
        candidate=comparison.candidate + block.candidate,
        candidate_hits=comparison.candidate_hits + block.candidate_hits,
        stable=comparison.stable + block.stable,
        stable_hits=comparison.stable_hits + block.stable_hits,
        recent=comparison.recent * MEMORY + block.stable,
        recent_hits=comparison.recent_hits * MEMORY + block.stable_hits,
    )


def log_returns(block: Counts, stable_rate: Array, margin: float) -> Array:
    """Log of what each bet makes of 1 in one block, (..., bets); 0 where a version is missing or
    stable is expected to hit always."""
    n, k, m, j = (np.asarray(count, dtype=np.float64)[..., np.newaxis] for count in block)
    expected = np.asarray(stable_rate, dtype=np.float64)[..., np.newaxis] + margin
    playable = (n > 0) & (m > 0) & (expected < 0.99)
    q = np.clip(expected, 1e-6, 0.99)
    p = _above(q)
    m_or_1 = np.where(playable, m, 1.0)
    n_or_0 = np.where(playable, n, 0.0)
    a = (n_or_0 * p + m_or_1 * q) / (n_or_0 + m_or_1)
    b = a - margin
    g = (p - a) / (a * (1 - a))
    h = -g * n_or_0 / m_or_1
    shrink = np.minimum(1.0, 0.95 / np.maximum(-h * (1 - b), 1e-300))
    g, h = g * shrink, h * shrink
    log_s = (
        k * np.log1p(g * (1 - a))
        + (n - k) * np.log1p(-g * a)
        + j * np.log1p(h * (1 - b))
        + (m - j) * np.log1p(-h * b)
    )
    returns: Array = np.where(playable, log_s, 0.0)
    return returns


def log_returns_alone(block: Counts, highest: Array) -> Array:
    """Log of what each bet makes of 1 in one block, (..., bets), where the candidate's rate may be
    ``highest``; 0 where that is nearly always."""
    n, k = (np.asarray(block[index], dtype=np.float64)[..., np.newaxis] for index in (0, 1))
    limit = np.asarray(highest, dtype=np.float64)[..., np.newaxis]
    a = np.clip(limit, 1e-6, 0.99)
    p = _above(a)
    returns: Array = k * np.log(p / a) + (n - k) * np.log((1 - p) / (1 - a))
    return np.where(limit < 0.99, returns, 0.0)


def _above(rate: Array) -> Array:
    """Return the rate that each bet is on, (..., bets): a ladder of odds above (..., 1)."""
    odds = rate / (1 - rate) * ODDS_RATIOS
    higher: Array = odds / (1 + odds)
    return higher
