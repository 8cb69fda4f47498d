"""Do the versions get the share of callers that their weights say?

A sample-ratio mismatch means that the evidence itself is broken: requests lost without a log line,
a candidate that dies before it answers, a gateway that does not split as told. Null: each unit goes
to the candidate with probability weight / 100, on its own. Test: Lindon & Malek 2022,
"Anytime-valid inference for multinomial count data" (NeurIPS): the Bayes factor of a
Dirichlet-multinomial (here with two categories: a beta-binomial), a non-negative martingale under
the null. Each step of the release starts a new factor with its weight, and the factors multiply.

The unit is what the gateway draws lots for: a request without a sticky key, or a caller with one,
counted once in a release (vlserve.control.judge.seen_callers).
"""

from dataclasses import dataclass, replace

import numpy as np

from vlserve.control.judge.capital import Array, JsonArray

CONCENTRATION = 100.0
"""Of the prior about the weight: mismatches of a few points are expected rather than gross ones."""


@dataclass(frozen=True, eq=False)
class SampleRatio:
    """Units of this step by version, and the evidence of the steps before; arrays (...)."""

    candidate: JsonArray
    stable: JsonArray
    earlier_log_e: JsonArray
    peak: JsonArray


def start(releases: tuple[int, ...] = ()) -> SampleRatio:
    zero = np.zeros(releases)
    return SampleRatio(zero, zero, zero, zero)


def settle(ratio: SampleRatio, candidate: Array, stable: Array, weight: int) -> SampleRatio:
    """Add units that were drawn at ``weight`` per cent. At 0 and 100 no lots are drawn."""
    if not 0 < weight < 100:
        return ratio
    ratio = replace(ratio, candidate=ratio.candidate + candidate, stable=ratio.stable + stable)
    return replace(ratio, peak=np.maximum(ratio.peak, log_e(ratio, weight)))


def next_step(ratio: SampleRatio, weight: int) -> SampleRatio:
    """Close the factor of the step at ``weight``, whose successor has another weight."""
    zero = np.zeros_like(ratio.candidate)
    return SampleRatio(zero, zero, log_e(ratio, weight), ratio.peak)


def log_e(ratio: SampleRatio, weight: int) -> Array:
    """Log e-value over all steps so far, (...)."""
    from scipy.special import betaln

    if not 0 < weight < 100:
        return ratio.earlier_log_e
    share = weight / 100
    prior = CONCENTRATION * share, CONCENTRATION * (1 - share)
    alternative = betaln(prior[0] + ratio.candidate, prior[1] + ratio.stable) - betaln(*prior)
    null = ratio.candidate * np.log(share) + ratio.stable * np.log1p(-share)
    total: Array = ratio.earlier_log_e + alternative - null
    return total
