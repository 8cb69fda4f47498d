"""Many releases at once, through the gates' own code: vlserve.control.judge works on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.release.judge_traffic import STABLE_TAGS, Array, Traffic
from vlserve.control.judge import agreement, latency, sample_ratio, tags, two_sample
from vlserve.control.judge.latency import Timed
from vlserve.control.judge.observation import BLOCK
from vlserve.control.judge.policy import Gates, Policy
from vlserve.control.judge.two_sample import Counts, Mask

GATES = tuple(Gates.model_fields)


@dataclass
class Releases:
    """Many releases at once: one state a gate, the last axis its own, the first the release."""

    policy: Policy
    count: int

    def __post_init__(self) -> None:
        shape = (self.count,)
        self.errors = two_sample.start(0.001, 200, shape)
        self.latency = latency.start(shape)
        self.ratio = sample_ratio.start(shape)
        self.agreement = agreement.start_agreement(shape)
        self.score = agreement.start_score_distance(shape)
        self.tags = tags.start(tuple(map(str, range(len(STABLE_TAGS)))), shape)

    def look(self, traffic: Traffic, weight: int, look: int, rng: np.random.Generator) -> Array:
        """One block of requests to every release; returns how many were the candidate's."""
        shape = (self.count, BLOCK)
        share = weight / 100 * (1 - traffic.candidate_lost)
        share /= share + 1 - weight / 100
        candidate = rng.random(shape) < share
        fails = np.where(candidate, traffic.candidate_fails(look), traffic.stable_fails(look))
        failed = rng.random(shape) < fails
        stable_ms = traffic.stable_ms(rng, shape, look)
        candidate_ms = traffic.candidate_ms(rng, shape, look)
        self._settle_requests(candidate, failed, np.where(candidate, candidate_ms, stable_ms))
        self._settle_tags(traffic, candidate & ~failed, ~candidate & ~failed, rng)
        counts: Array = candidate.sum(axis=-1).astype(np.float64)
        self.ratio = sample_ratio.settle(self.ratio, counts, BLOCK - counts, weight)
        self._settle_pairs(traffic, rng)
        return counts

    def _settle_requests(self, candidate: Mask, failed: Mask, latency_ms: Array) -> None:
        gates = self.policy.gates
        self.errors = two_sample.settle(
            self.errors, Counts.of(candidate, ~candidate, failed), gates.errors.margin
        )
        self.latency = latency.settle(
            self.latency,
            Timed(latency_ms, candidate & ~failed, ~candidate & ~failed),
            gates.latency_p50.margin,
            gates.latency_p99.margin,
        )

    def _settle_tags(
        self, traffic: Traffic, candidate: Mask, stable: Mask, rng: np.random.Generator
    ) -> None:
        uniform = rng.random(candidate.shape)

        def count(distribution: Array, mask: Mask) -> Array:
            tag = np.searchsorted(np.cumsum(distribution)[:-1], uniform)
            flat = (tag + np.arange(self.count)[:, np.newaxis] * len(distribution))[mask]
            counts = np.bincount(flat, minlength=self.count * len(distribution))
            return counts.reshape(self.count, -1).astype(np.float64)

        self.tags = tags.settle(
            self.tags,
            count(traffic.candidate_tags, candidate),
            count(STABLE_TAGS, stable),
            self.policy.gates.tags.margin,
        )

    def _settle_pairs(self, traffic: Traffic, rng: np.random.Generator) -> None:
        shape = (self.count, traffic.pairs_per_look)
        agree = rng.random(shape) < traffic.agreement
        distances = np.where(rng.random(shape) < traffic.distance, 1.0, 0.0)
        gates = self.policy.gates
        self.agreement = agreement.settle_agreement(
            self.agreement,
            np.full(self.count, float(traffic.pairs_per_look)),
            agree.sum(axis=-1).astype(np.float64),
            gates.agreement.floor,
        )
        self.score = agreement.settle_score_distance(
            self.score, distances, gates.score_distance.ceiling
        )

    def next_step(self, weight: int) -> None:
        self.ratio = sample_ratio.next_step(self.ratio, weight)

    def alarms(self) -> NDArray[np.bool_]:
        """(gates, releases): whether each gate has alarmed by now."""
        peaks = (
            self.errors.peak,
            self.latency.p50.peak,
            self.latency.p99.peak,
            self.ratio.peak,
            self.agreement.peak,
            self.score.peak,
            self.tags.comparison.peak,
        )
        limits = [-np.log(self.policy.alpha_of(gate)) for gate in GATES]
        return np.array([peak >= limit for peak, limit in zip(peaks, limits, strict=True)])
