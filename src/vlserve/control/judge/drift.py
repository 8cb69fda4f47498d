"""Do a version's answers name other labels than its training data has?

Null: total variation distance between the distribution of best labels and that of the training data
<= margin. So for the set of labels that were named more often so far than in training (known before
the block), P(label in set) <= P_training(set) + margin: a bet on each answer whether its label is
in the set, with the capital of `capital`. The training distribution is taken as known.

By Ville's inequality the capital ever reaches 1/alpha with probability at most alpha while the null
holds, however often one looks; answers are taken to be independent. Answers may be passed over, as
long as what they say does not decide it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vlserve.control.judge import capital
from vlserve.control.judge.capital import JsonArray

BLOCK = 40
"""Answers that are paid out together."""
BETS = (0.05, 0.2, 0.5)
"""What each bet loses of itself where a label is not in the set."""


@dataclass(frozen=True, eq=False)
class Drift:
    """The evidence so far. ``counts``: label -> answers. ``open_block``: labels that wait for their
    block to fill."""

    answers: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    purses: JsonArray = field(default_factory=lambda: capital.start(len(BETS)))
    peak_e: float = 1.0
    open_block: tuple[str, ...] = ()

    @property
    def e_value(self) -> float:
        """Evidence against the null, now."""
        return float(np.exp(min(700.0, float(capital.log_e(self.purses)))))


def take_in(
    drift: Drift, labels: Sequence[str], training: Mapping[str, int], margin: float
) -> Drift:
    """Return the evidence with the best labels of more answers, in their order."""
    queue = [*drift.open_block, *labels]
    whole = len(queue) // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        drift = _settle(drift, queue[start : start + BLOCK], training, margin)
    return replace(drift, open_block=tuple(queue[whole:]))


def _settle(
    drift: Drift, block: Sequence[str], training: Mapping[str, int], margin: float
) -> Drift:
    total, answers = sum(training.values()), max(1, drift.answers)
    favourites = {
        label
        for label, count in drift.counts.items()
        if count / answers > training.get(label, 0) / total
    }
    mean = min(1.0, sum(training.get(label, 0) for label in favourites) / total + margin)
    hits = sum(label in favourites for label in block)
    purses = drift.purses
    if favourites and mean < 1:  # else there is nothing to bet on
        loss = np.log1p(-np.array(BETS))
        gain = np.log1p(np.array(BETS) * (1 - mean) / mean)
        purses = capital.settle(purses, hits * gain + (len(block) - hits) * loss)
    counts = dict(drift.counts)
    for label in block:
        counts[label] = counts.get(label, 0) + 1
    drift = replace(drift, answers=drift.answers + len(block), counts=counts, purses=purses)
    return replace(drift, peak_e=max(drift.peak_e, drift.e_value))
