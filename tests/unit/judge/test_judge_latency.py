import numpy as np
import pytest

from vlserve.control.judge import latency
from vlserve.control.judge.latency import Timed


def run(blocks, slow_down=lambda ms, rng: ms, seed=0, p50_margin=0.2, p99_margin=0.3):
    rng, state = np.random.default_rng(seed), latency.start()
    for _ in range(blocks):
        candidate = rng.random(40) < 0.2
        ms = rng.lognormal(3, 0.3, 40)
        ms = np.where(candidate, slow_down(ms, rng), ms)
        state = latency.settle(state, Timed(ms, candidate, ~candidate), p50_margin, p99_margin)
    return state


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.99])
def test_quantiles_are_within_a_bucket_of_the_sample(level):
    ms = np.random.default_rng(1).lognormal(3, 0.5, 40)
    everything = np.ones(40, dtype=bool)
    state = latency.settle(latency.start(), Timed(ms, ~everything, everything), 0.2, 0.3)
    (quantile,) = latency.quantiles_ms(state.stable, level)
    sample = np.quantile(ms, level, method="inverted_cdf")
    assert quantile == pytest.approx(sample, rel=latency.GROWTH - 1)


def test_latencies_beyond_the_histogram_fall_into_its_ends():
    ms, stable = np.array([0.0, 1e9]), np.array([True, True])
    state = latency.settle(latency.start(), Timed(ms, ~stable, stable), 0.2, 0.3)
    assert state.stable[0] == 1
    assert state.stable[-1] == 1


def test_old_latencies_fade():
    state = latency.start()
    stable = np.ones(40, dtype=bool)
    for ms in [10.0] * 300 + [80.0] * 300:
        state = latency.settle(state, Timed(np.full(40, ms), ~stable, stable), 0.2, 0.3)
    assert latency.quantiles_ms(state.stable, 0.5)[0] == pytest.approx(80, rel=0.06)
    assert state.stable.sum() <= 40 / (1 - 0.995)


def test_no_bet_before_stable_is_known():
    state = latency.start()
    candidate = np.arange(40) < 20
    state = latency.settle(state, Timed(np.full(40, 20.0), candidate, ~candidate), 0.2, 0.3)
    assert state.p50.candidate == 0
    assert state.stable.sum() == 20


def test_counts_each_request_against_the_threshold_from_before_the_block():
    state = latency.start()
    stable = np.ones(40, dtype=bool)
    for _ in range(2):
        state = latency.settle(state, Timed(np.full(40, 10.0), ~stable, stable), 0.2, 0.3)
    candidate = np.arange(40) < 10
    ms = np.where(candidate, 12.9, 11.0)
    state = latency.settle(state, Timed(ms, candidate, ~candidate), 0.2, 0.3)
    assert state.p50.stable_hits == 30
    assert state.p50.candidate_hits == 10
    assert state.p99.candidate_hits == 0


def test_finds_a_slower_median():
    state = run(100, lambda ms, rng: 1.5 * ms)
    assert state.p50.peak > np.log(200)


def test_finds_a_slow_tail():
    state = run(150, lambda ms, rng: np.where(rng.random(40) < 0.05, ms + 55, ms))
    assert state.p99.peak > np.log(100)
    assert state.p50.peak < np.log(20)


def test_tolerates_what_the_margin_allows():
    state = run(500, lambda ms, rng: 1.19 * ms)
    assert state.p50.peak < np.log(200)
    assert state.p99.peak < np.log(100)
