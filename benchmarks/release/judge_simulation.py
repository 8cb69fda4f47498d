"""Error guarantee and power of the judge, measured: prints the table of docs/gray-release.md.

    OMP_NUM_THREADS=1 nice -n 15 .venv/bin/python -m benchmarks.release.judge_simulation

Thousands of releases run side by side through the gates' own code, with the settings of
serving_config/rollout.yaml. One look is one block of requests, after which every gate is asked.
Shares are given with a 95 % Clopper-Pearson interval.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from benchmarks import CHECKOUT
from benchmarks.release.judge_callers import CALLERS, gates_that_alarm
from benchmarks.release.judge_releases import GATES, Releases
from benchmarks.release.judge_traffic import Traffic, late_trouble, nulls, troubles
from vlserve.control.judge import two_sample
from vlserve.control.judge.observation import BLOCK
from vlserve.control.judge.policy import Minimum, Policy, load_policy
from vlserve.control.judge.two_sample import Counts, Mask

POLICY = CHECKOUT / "serving_config" / "rollout.yaml"
IN_CACHE = 250
"""Releases that are simulated side by side: more no longer fit into the processor's cache."""


@dataclass(frozen=True)
class Alarms:
    """How many of ``releases`` were alarmed at least once, by gate and by any gate."""

    scenario: str
    releases: int
    looks: int
    by_gate: dict[str, int]
    any_gate: int

    def row(self) -> str:
        low, high = interval(self.any_gate, self.releases)
        gates = " | ".join(str(self.by_gate[gate]) for gate in GATES)
        share = f"{self.any_gate / self.releases:.2%} ({low:.2%} to {high:.2%})"
        return f"| {self.scenario} | {self.releases} x {self.looks} | {gates} | **{share}** |"


def run_null(
    policy: Policy, traffic: Traffic, releases: int, looks: int, rng: np.random.Generator
) -> Alarms:
    """Count the releases in which any gate ever alarms, over ``looks`` looks at rising weights."""
    parts = [min(IN_CACHE, releases - start) for start in range(0, releases, IN_CACHE)]
    alarms = np.hstack([_alarms_without_trouble(policy, traffic, n, looks, rng) for n in parts])
    by_gate = {gate: int(alarms[place].sum()) for place, gate in enumerate(GATES)}
    return Alarms(
        traffic.name,
        releases,
        looks,
        by_gate,
        int(alarms.any(axis=0).sum()),
    )


def _alarms_without_trouble(
    policy: Policy, traffic: Traffic, releases: int, looks: int, rng: np.random.Generator
) -> Mask:
    sim = Releases(policy, releases)
    for look in range(looks):
        step = look * len(traffic.weights) // looks
        if look and step != (look - 1) * len(traffic.weights) // looks:
            sim.next_step(traffic.weights[step - 1])
        sim.look(traffic, traffic.weights[step], look, rng)
    return sim.alarms()


def run_callers(
    policy: Policy, unit: str, releases: int, looks: int, rng: np.random.Generator
) -> Alarms:
    """A/A with callers that have sticky keys and habits (judge_callers), counted by ``unit``."""
    policy = policy.model_copy(update={"unit": unit})
    by_gate, alarms = dict.fromkeys(GATES, 0), 0
    for _ in range(releases):
        gates = gates_that_alarm(policy, looks, rng)
        alarms += bool(gates)
        for gate in gates:
            by_gate[gate] += 1
    name = f"A/A, {CALLERS:,} callers with sticky keys and habits, unit: {unit}"
    return Alarms(name, releases, looks, by_gate, alarms)


@dataclass(frozen=True)
class Detection:
    """Candidate requests (or pairs) from the beginning of the trouble to the alarm."""

    scenario: str
    split: str
    gate: str
    unit: str
    releases: int
    median: float
    p95: float
    limit: int
    within_limit: int
    never: int
    """Releases in which it was not found at all: within five times the limit, or below 100 %."""
    false_before: int
    """Releases in which any gate alarmed before the trouble began."""

    def row(self) -> str:
        low, high = interval(self.within_limit, self.releases)
        share = f"{self.within_limit / self.releases:.1%} ({low:.1%} to {high:.1%})"
        return (
            f"| {self.scenario} | {self.split} | {self.gate} | {self.median:.0f} | "
            f"{self.p95:.0f} | {share} within {self.limit} {self.unit}; never: {self.never} |"
        )


def run_power(
    policy: Policy,
    traffic: Traffic,
    gate: str,
    limit: int,
    releases: int,
    rng: np.random.Generator,
    trouble_from: int = 0,
    healthy: Traffic | None = None,
) -> Detection:
    """Run until ``gate`` has alarmed in every release, or five times ``limit`` was spent."""
    sim, place, weight = Releases(policy, releases), GATES.index(gate), traffic.weights[0]
    for look in range(trouble_from):
        sim.look(healthy or traffic, weight, look, rng)
    before = sim.alarms().any(axis=0)
    count, alarm_at = np.zeros(releases), np.full(releases, np.inf)
    pairs = gate in ("agreement", "score_distance")
    look = trouble_from
    while np.isinf(alarm_at).any() and count.min() < 5 * limit:
        sample = sim.look(traffic, weight, look, rng)
        count += traffic.pairs_per_look if pairs else sample
        alarm_at = np.where(np.isinf(alarm_at) & sim.alarms()[place], count, alarm_at)
        look += 1
    return Detection(
        traffic.name,
        f"{weight}:{100 - weight}",
        gate,
        "shadow pairs" if pairs else "candidate requests",
        releases,
        float(np.quantile(alarm_at, 0.5, method="higher")),
        float(np.quantile(alarm_at, 0.95, method="higher")),
        limit,
        int((alarm_at <= limit).sum()),
        int(np.isinf(alarm_at).sum()),
        int(before.sum()),
    )


def run_whole_release(policy: Policy, releases: int, rng: np.random.Generator) -> Detection:
    """A candidate that fails 2 % instead of 0.1 %, in a release whose weight rises as soon as the
    step has its minimum of evidence, with no hold. Found before it has all the weight?"""
    weights, minimum = np.array(policy.weights), policy.minimum
    gate, limit = two_sample.start(0.001, 200, (releases,)), -np.log(policy.alpha_of("errors"))
    count, alarm_at = np.zeros(releases), np.full(releases, np.inf)
    step, of_step = np.zeros(releases, dtype=int), np.zeros((2, releases))
    while (np.isinf(alarm_at) & (weights[step] < 100)).any():
        candidate = rng.random((releases, BLOCK)) < weights[step][:, np.newaxis] / 100
        failed = rng.random((releases, BLOCK)) < np.where(candidate, 0.02, 0.001)
        block = Counts.of(candidate, ~candidate, failed)
        gate = two_sample.settle(gate, block, policy.gates.errors.margin)
        count += block.candidate
        of_step += np.array([block.candidate, block.stable])
        alarm_at = np.where(np.isinf(alarm_at) & (gate.peak >= limit), count, alarm_at)
        rises = (of_step[0] >= minimum.candidate) & (of_step[1] >= minimum.stable)
        step = np.minimum(step + rises, len(weights) - 1)
        of_step[:, rises] = 0
    return Detection(
        f"fails 2 % instead of 0.1 %, weight rises after {minimum.candidate} candidate requests",
        ", ".join(map(str, policy.weights)),
        "errors",
        "candidate requests",
        releases,
        float(np.quantile(alarm_at, 0.5, method="higher")),
        float(np.quantile(alarm_at, 0.95, method="higher")),
        800,
        int((alarm_at <= 800).sum()),
        int(np.isinf(alarm_at).sum()),
        0,
    )


def run_last_step(
    policy: Policy, rate: float, blocks: int, releases: int, rng: np.random.Generator
) -> Detection:
    """A candidate that fails as rarely as stable, 0.1 %, until it has all the weight, and then at
    ``rate``. Every step before has its minimum of evidence and no more."""
    shape, limit = (releases, BLOCK), -np.log(policy.alpha_of("errors"))
    gate = two_sample.start(0.001, 200, (releases,))
    for weight in policy.weights[:-1]:
        evidence = np.zeros((2, releases))
        while (
            evidence[0].min() < policy.minimum.candidate
            or evidence[1].min() < policy.minimum.stable
        ):
            candidate = rng.random(shape) < weight / 100
            block = Counts.of(candidate, ~candidate, rng.random(shape) < 0.001)
            gate = two_sample.settle(gate, block, policy.gates.errors.margin)
            evidence += np.array([block.candidate, block.stable])
    before = gate.peak >= limit
    alarm_at = np.full(releases, np.inf)
    everyone = np.ones(shape, dtype=bool)
    for number in range(1, blocks + 1):
        block = Counts.of(everyone, ~everyone, rng.random(shape) < rate)
        gate = two_sample.settle_alone(gate, block, policy.gates.errors.margin)
        alarm_at = np.where(np.isinf(alarm_at) & (gate.peak >= limit), number * BLOCK, alarm_at)
    return Detection(
        f"fails {rate:.1%} instead of 0.1 % from full weight on",
        "100",
        "errors",
        "candidate requests",
        releases,
        float(np.quantile(alarm_at, 0.5, method="higher")),
        float(np.quantile(alarm_at, 0.95, method="higher")),
        blocks * BLOCK,
        int((alarm_at <= blocks * BLOCK).sum()),
        int(np.isinf(alarm_at).sum()),
        int(before.sum()),
    )


def interval(hits: int, trials: int) -> tuple[float, float]:
    bounds = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    return float(bounds.low), float(bounds.high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--looks", type=int, default=10_000, help="of the A/A releases")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    start = time.monotonic()
    policy, releases = load_policy(POLICY), options.releases
    seeds = iter(np.random.SeedSequence(options.seed).spawn(100))
    results: list[Alarms | Detection] = []

    def report(result: Alarms | Detection) -> None:
        print(result.row(), flush=True)
        results.append(result)

    def rng() -> np.random.Generator:
        return np.random.default_rng(next(seeds))

    print(f"| nothing wrong | releases x looks | {' | '.join(GATES)} | releases with an alarm |")
    print("|" + "---|" * (len(GATES) + 3), flush=True)
    for place, traffic in enumerate(nulls(policy)):
        looks = options.looks if place == 0 else options.looks // 5
        report(run_null(policy, traffic, releases, looks, rng()))
    for unit in ("caller", "request"):
        report(run_callers(policy, unit, max(1, releases // 5), 300, rng()))
    print("\n| trouble | split | gate | median | 95 % of releases | found |")
    print("|---|---|---|---|---|---|", flush=True)
    for traffic, gate, limit in troubles():
        report(run_power(policy, traffic, gate, limit, releases, rng()))
    late, healthy = late_trouble()
    report(run_power(policy, late, "errors", 1200, releases, rng(), 2000, healthy))
    report(run_whole_release(policy, releases, rng()))
    hasty = policy.model_copy(update={"minimum": Minimum(candidate=200)})
    report(run_whole_release(hasty, releases, rng()))
    for rate in (0.001, 0.02, 0.1):
        report(run_last_step(policy, rate, 100, releases, rng()))
    if options.json:
        options.json.write_text(
            json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8"
        )
    print(f"\n{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
