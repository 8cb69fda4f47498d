"""Do the candidate's answers name other tags than stable's, on the traffic of each?

Null: total variation distance between the two distributions of top tags <= margin. That is the
largest difference over all sets of tags, so for the set of tags that the candidate has named more
often so far (known before the block), P_candidate(set) <= P_stable(set) + margin: a two-sample gate
on hits "tag in set" (Podkopaev & Ramdas 2023, "Sequential predictive two-sample and independence
testing", NeurIPS, with the simplest of predictors).

The population stability index is reported beside it, as a figure: it has no error guarantee, and
with n requests of T tags it is about (T - 1) (1/n_candidate + 1/n_stable) where nothing differs.
"""

from dataclasses import dataclass

import numpy as np

from vlserve.control.judge import two_sample
from vlserve.control.judge.capital import Array, JsonArray
from vlserve.control.judge.two_sample import Comparison, Counts

MAX_TAGS = 512
"""Tags that are told apart; all later ones share the last place."""


@dataclass(frozen=True, eq=False)
class Tags:
    """Answers by version and tag, (..., tags), and the gate."""

    names: tuple[str, ...]
    candidate: JsonArray
    stable: JsonArray
    comparison: Comparison


def start(names: tuple[str, ...] = (), releases: tuple[int, ...] = ()) -> Tags:
    empty = np.zeros((*releases, len(names)))
    return Tags(names, empty, empty, two_sample.start(0.5, 1, releases))


def tally(tags: Tags, candidate: list[str], stable: list[str], margin: float) -> Tags:
    """Pay out the answers of one block, by name."""
    names = tuple(dict.fromkeys((*tags.names, *candidate, *stable)))[:MAX_TAGS]
    place = {name: index for index, name in enumerate(names)}

    def count(answers: list[str]) -> Array:
        places = np.array([place.get(name, MAX_TAGS - 1) for name in answers], dtype=np.int64)
        return np.bincount(places, minlength=len(names)).astype(np.float64)

    new = (0, len(names) - len(tags.names))
    tags = Tags(names, np.pad(tags.candidate, new), np.pad(tags.stable, new), tags.comparison)
    return settle(tags, count(candidate), count(stable), margin)


def settle(tags: Tags, candidate: Array, stable: Array, margin: float) -> Tags:
    """Pay out one block, (..., tags) answers by version, then learn from it."""
    p, q = shares(tags.candidate), shares(tags.stable)
    favoured = p > q
    counts = Counts(
        candidate=candidate.sum(axis=-1),
        candidate_hits=(candidate * favoured).sum(axis=-1),
        stable=stable.sum(axis=-1),
        stable_hits=(stable * favoured).sum(axis=-1),
    )
    return Tags(
        names=tags.names,
        candidate=tags.candidate + candidate,
        stable=tags.stable + stable,
        comparison=two_sample.settle(
            tags.comparison, counts, margin, stable_rate=(q * favoured).sum(axis=-1)
        ),
    )


def shares(counts: Array) -> Array:
    """Tag distribution, half an answer added to each tag so that none is impossible."""
    counts = counts + 0.5
    distribution: Array = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 0.5)
    return distribution


def stability_index(tags: Tags) -> Array:
    """Return the population stability index, (...): sum of (p - q) ln(p / q); 0 where nothing
    differs."""
    return index_of(tags.candidate, tags.stable)


def index_of(candidate: Array, stable: Array) -> Array:
    """Return `stability_index` of counts (..., tags)."""
    p, q = shares(candidate), shares(stable)
    index: Array = ((p - q) * np.log(p / q)).sum(axis=-1)
    return index
