"""The gates: what each counted, what it concludes, what it still waits for.

Each gate's statistics are in a module of their own: two_sample (errors), latency, sample_ratio,
agreement (also the score distance) and tags. Its threshold and margin are in policy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vlserve.control.judge import agreement, capital, sample_ratio
from vlserve.control.judge.capital import Array
from vlserve.control.judge.latency import quantiles_ms
from vlserve.control.judge.state import JudgeState
from vlserve.control.judge.tags import stability_index
from vlserve.control.judge.two_sample import Comparison

MAX_LOG_E = 600.0
"""Larger e-values are reported as exp(600), which JSON can still write."""


class Verdict(StrEnum):
    CLEAR = "clear"  # enough evidence, none of it alarming
    WAITING = "waiting"
    ALARM = "alarm"


@dataclass(frozen=True)
class Need:
    """How much evidence a gate has, and how much it asks for before a step is left.

    ``kind``: what is counted: candidate (its requests), stable, callers or pairs.
    """

    kind: str
    what: str
    seen: float
    minimum: int

    @property
    def lacking(self) -> str:
        """What is missing, in words; empty where there is enough."""
        return f"{self.what}: {self.seen:.0f} of {self.minimum}" if self.lacks else ""

    @property
    def lacks(self) -> bool:
        """Whether there is less than the minimum."""
        return self.seen < self.minimum


@dataclass(frozen=True)
class GateResult:
    """One gate at one evaluation."""

    gate: str
    verdict: Verdict
    e_value: float
    """Evidence against the candidate now: 1 is none; 1 / e_value bounds the p-value."""
    peak_e_value: float
    """The highest so far: the alarm stands once this has reached ``threshold``."""
    threshold: float
    """1 / (the gate's share of alpha)."""
    summary: str
    waits_for: str
    """Empty unless the gate waits."""
    figures: Mapping[str, float]
    """Counts, rates, bounds, latencies; units in the names."""
    need: Need | None = None
    """None in what was kept before there were any."""


def gate_results(state: JudgeState) -> tuple[GateResult, ...]:
    """Return the results of all gates of this rollout, in the order of rollout.yaml."""
    return tuple(_gates(state))


def _gates(state: JudgeState) -> Iterator[GateResult]:
    yield _errors(state)
    yield _latency(state, "latency_p50", state.latency.p50, 0.5)
    yield _latency(state, "latency_p99", state.latency.p99, 0.99)
    if state.has_split:
        yield _sample_ratio(state)
    if state.shadowed:
        yield _agreement(state)
        yield _score_distance(state)
    if state.has_tags:
        yield _tags(state)


def _errors(state: JudgeState) -> GateResult:
    errors = state.errors
    return _figure(
        state,
        "errors",
        capital.log_e(errors.purses),
        errors.peak,
        summary=f"candidate failed {_of(errors.candidate_hits, errors.candidate)}, "
        f"stable {_of(errors.stable_hits, errors.stable)}",
        need=_needed_requests(state),
        figures={
            **_two_sample_figures(errors, "failed"),
            "margin": state.policy.gates.errors.margin,
            "step_candidate": state.step_candidate,
            "step_stable": state.step_stable,
            "repeats_not_counted": state.repeats,
        },
    )


def _latency(state: JudgeState, gate: str, comparison: Comparison, level: float) -> GateResult:
    name = gate.removeprefix("latency_")
    candidate_ms = float(quantiles_ms(state.latency.candidate, level)[0])
    stable_ms = float(quantiles_ms(state.latency.stable, level)[0])
    return _figure(
        state,
        gate,
        capital.log_e(comparison.purses),
        comparison.peak,
        summary=f"candidate {candidate_ms:.3g} ms, stable {stable_ms:.3g} ms",
        need=_needed_comparisons(state, comparison, "answered requests"),
        figures={
            **_two_sample_figures(comparison, "slow"),
            "margin": getattr(state.policy.gates, gate).margin,
            f"candidate_{name}_ms": candidate_ms,
            f"stable_{name}_ms": stable_ms,
        },
    )


def _sample_ratio(state: JudgeState) -> GateResult:
    ratio = state.sample_ratio
    candidate, units = float(ratio.candidate), float(ratio.candidate + ratio.stable)
    minimum = state.policy.minimum.units if state.compares else 0
    return _figure(
        state,
        "sample_ratio",
        sample_ratio.log_e(ratio, state.weight),
        ratio.peak,
        summary=f"candidate drew {candidate:.0f} of {units:.0f} callers at {state.weight} %",
        need=Need("callers", "callers", units, minimum),
        figures={"candidate": candidate, "units": units, "weight": state.weight},
    )


def _agreement(state: JudgeState) -> GateResult:
    evidence, floor = state.agreement, state.policy.gates.agreement.floor
    pairs, matches = float(evidence.pairs), float(evidence.agreeing)
    lower, upper = agreement.bounds(pairs, matches, state.policy.alpha_of("agreement"))
    below = f"its lower bound, now {lower:.3f}, to reach {floor:g}" if lower < floor else ""
    return _figure(
        state,
        "agreement",
        agreement.log_e_below(evidence, floor),
        evidence.peak,
        summary=f"same top tag in {matches:.0f} of {pairs:.0f} pairs, floor {floor:g}",
        need=_needed_pairs(state),
        also_waits_for=below,
        figures={
            "pairs": pairs,
            "agreeing": matches,
            "lower_bound": lower,
            "upper_bound": upper,
            "floor": floor,
        },
    )


def _score_distance(state: JudgeState) -> GateResult:
    score, ceiling = state.score_distance, state.policy.gates.score_distance.ceiling
    mean = float(score.total / score.pairs) if score.pairs else 0.0
    return _figure(
        state,
        "score_distance",
        capital.log_e(score.purses),
        score.peak,
        summary=f"mean {mean:.3f} over {float(score.pairs):.0f} pairs, ceiling {ceiling:g}",
        need=_needed_pairs(state),
        figures={"pairs": float(score.pairs), "mean": mean, "ceiling": ceiling},
    )


def _tags(state: JudgeState) -> GateResult:
    comparison = state.tags.comparison
    psi = float(stability_index(state.tags))
    return _figure(
        state,
        "tags",
        capital.log_e(comparison.purses),
        comparison.peak,
        summary=f"tags that the candidate favours: candidate "
        f"{_of(comparison.candidate_hits, comparison.candidate)}, "
        f"stable {_of(comparison.stable_hits, comparison.stable)}",
        need=_needed_comparisons(state, comparison, "answers with tags"),
        figures={
            **_two_sample_figures(comparison, "in_favoured_tags"),
            "margin": state.policy.gates.tags.margin,
            "population_stability_index": psi,
        },
    )


def _figure(
    state: JudgeState,
    gate: str,
    log_e: Array,
    peak: Array,
    *,
    summary: str,
    need: Need,
    figures: Mapping[str, float],
    also_waits_for: str = "",
) -> GateResult:
    alpha = state.policy.alpha_of(gate)
    alarm = bool(peak >= -np.log(alpha))
    waits_for = need.lacking or also_waits_for
    verdict = Verdict.ALARM if alarm else Verdict.WAITING if waits_for else Verdict.CLEAR
    return GateResult(
        gate=gate,
        verdict=verdict,
        e_value=_e_value(log_e),
        peak_e_value=_e_value(peak),
        threshold=round(1 / alpha, 6),
        summary=summary,
        waits_for="" if alarm else waits_for,
        figures=figures,
        need=need,
    )


def _e_value(log_e: Array) -> float:
    return float(np.exp(np.minimum(log_e, MAX_LOG_E)))


def _of(hits: Array, trials: Array) -> str:
    return f"{float(hits):.0f} of {float(trials):.0f}"


def _two_sample_figures(comparison: Comparison, hits: str) -> dict[str, float]:
    return {
        "candidate": float(comparison.candidate),
        f"candidate_{hits}": float(comparison.candidate_hits),
        "stable": float(comparison.stable),
        f"stable_{hits}": float(comparison.stable_hits),
    }


def _needed_requests(state: JudgeState) -> Need:
    """Return what a step needs: outcomes of each version that has weight; the one that lacks."""
    minimum = state.policy.minimum
    of_candidate = Need(
        "candidate",
        "requests to the candidate",
        state.step_candidate,
        minimum.candidate if state.weight else 0,
    )
    of_stable = Need(
        "stable", "requests to stable", state.step_stable, minimum.stable if state.compares else 0
    )
    return of_stable if of_stable.lacks and not of_candidate.lacks else of_candidate


def _needed_comparisons(state: JudgeState, comparison: Comparison, what: str) -> Need:
    minimum = state.policy.minimum
    of_candidate = Need(
        "candidate",
        f"{what} of the candidate",
        float(comparison.candidate),
        minimum.candidate if state.compares else 0,
    )
    of_stable = Need(
        "stable",
        f"{what} of stable",
        float(comparison.stable),
        minimum.stable if state.compares else 0,
    )
    return of_stable if of_stable.lacks and not of_candidate.lacks else of_candidate


def _needed_pairs(state: JudgeState) -> Need:
    pairs = float(state.agreement.pairs)
    return Need("pairs", "shadow pairs", pairs, state.policy.minimum.pairs)
