"""The full run, 1,000 releases x 10,000 looks, is benchmarks/release/judge_simulation.py; this is
small.

Bounds: were the true probability what the judge promises, a test here would fail by chance once in
ten million runs.
"""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.release.judge_releases import Releases
from benchmarks.release.judge_simulation import run_null, run_power
from benchmarks.release.judge_traffic import nulls, troubles
from vlserve.control.judge import Batch, JudgeState, Outcome, Policy, observe
from vlserve.control.judge.observation import BLOCK

BY_CHANCE = 1e-7
RELEASES = 100


@pytest.fixture
def policy() -> Policy:
    return Policy.model_validate({"weights": [5, 50, 100], "hold_s": 60})


@pytest.mark.parametrize("scenario", [0, 1, 2])
def test_false_alarms_of_all_gates_together_stay_within_alpha(
    policy: Policy, scenario: int
) -> None:
    traffic = nulls(policy)[scenario]
    result = run_null(policy, traffic, RELEASES, 150, np.random.default_rng(scenario))
    assert result.any_gate <= binom.isf(BY_CHANCE, RELEASES, policy.alpha)


@pytest.mark.parametrize("place", [0, 3, 4, 6, 7, 9])
def test_trouble_is_found_in_time(policy: Policy, place: int) -> None:
    traffic, gate, limit = troubles()[place]
    rng = np.random.default_rng(place)
    result = run_power(policy, traffic, gate, limit, RELEASES, rng)
    assert result.within_limit >= binom.isf(1 - BY_CHANCE, RELEASES, 0.95)


def test_the_simulation_runs_what_a_release_runs(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    releases, state = Releases(policy, 2), JudgeState.start(policy)
    for _ in range(20):
        candidate, failed = rng.random((2, BLOCK)) < 0.3, rng.random((2, BLOCK)) < 0.05
        ms = rng.lognormal(3, 0.3, (2, BLOCK))
        releases._settle_requests(candidate, failed, ms)
        columns = zip(candidate[1].tolist(), failed[1].tolist(), ms[1].tolist(), strict=True)
        state = observe(state, Batch([Outcome(*column) for column in columns]))
    assert state.errors.purses == pytest.approx(releases.errors.purses[1])
    assert state.latency.p50.purses == pytest.approx(releases.latency.p50.purses[1])
    assert state.latency.p99.purses == pytest.approx(releases.latency.p99.purses[1])
