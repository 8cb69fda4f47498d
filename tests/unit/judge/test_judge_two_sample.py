import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from vlserve.control.judge import capital, two_sample
from vlserve.control.judge.two_sample import (
    CEILING_RISK,
    ODDS_RATIOS,
    Counts,
    log_returns,
    log_returns_alone,
)


def counts(n: float, k: float, m: float, j: float) -> Counts:
    return Counts(*(np.array(float(count)) for count in (n, k, m, j)))


def every_block(n: int, m: int) -> tuple[np.ndarray, np.ndarray, Counts]:
    k, j = (grid.ravel().astype(float) for grid in np.meshgrid(range(n + 1), range(m + 1)))
    return k, j, Counts(np.full_like(k, n), k, np.full_like(j, m), j)


def expectation(
    n: int, m: int, candidate_rate: float, stable_rate: float, margin: float, guess: float
) -> np.ndarray:
    """Of one block's bets, exactly: over all outcomes."""
    k, j, block = every_block(n, m)
    probability = binom.pmf(k, n, candidate_rate) * binom.pmf(j, m, stable_rate)
    returns = np.exp(log_returns(block, np.full(k.shape, guess), margin))
    return (probability[:, np.newaxis] * returns).sum(axis=0)


@pytest.mark.parametrize("split", [(1, 1), (2, 38), (20, 20), (38, 2)])
@pytest.mark.parametrize("margin", [0.0, 0.001, 0.1])
def test_no_bet_gains_on_average_while_the_candidate_is_no_worse(split, margin):
    rates = (0.0, 1e-4, 0.003, 0.05, 0.4, 0.9)
    for stable_rate, worse_by, guess in itertools.product(
        rates, (-0.05, 0.0, 1.0), (1e-6, 0.002, 0.05, 0.5, 0.95)
    ):
        candidate_rate = float(np.clip(stable_rate + worse_by * margin, 0, 1))
        gain = expectation(*split, candidate_rate, stable_rate, margin, guess)
        assert gain.max() <= 1 + 1e-9, (stable_rate, candidate_rate, guess)


def test_some_bet_gains_when_the_candidate_is_worse():
    assert expectation(2, 38, 0.02, 0.001, 0.001, 0.001).max() > 1.02


@pytest.mark.parametrize(("n", "k", "m", "j"), [(2, 1, 38, 0), (2, 0, 38, 3), (20, 4, 20, 1)])
def test_without_margin_it_is_the_e_variable_of_turner_ly_and_gruenwald(n, k, m, j):
    stable = 0.03
    odds = stable / (1 - stable) * ODDS_RATIOS
    worse = odds / (1 + odds)
    pooled = (n * worse + m * stable) / (n + m)
    alternative = binom.logpmf(k, n, worse) + binom.logpmf(j, m, stable)
    null = binom.logpmf(k, n, pooled) + binom.logpmf(j, m, pooled)
    log_return = log_returns(counts(n, k, m, j), np.array(stable), 0.0)
    assert log_return == pytest.approx(alternative - null)


@pytest.mark.parametrize("block", [counts(0, 0, 40, 3), counts(40, 3, 0, 0)])
def test_a_block_without_one_version_is_no_evidence(block):
    assert log_returns(block, np.array(0.01), 0.0) == pytest.approx(0.0)


@pytest.mark.parametrize("highest", [0.0001, 0.003, 0.05, 0.4, 0.98])
def test_no_bet_gains_on_average_while_the_candidate_alone_is_within_what_is_allowed(highest):
    k = np.arange(41.0)
    block = Counts(np.full_like(k, 40), k, 0 * k, 0 * k)
    returns = np.exp(log_returns_alone(block, np.array(highest)))
    for share in (0.0, 0.5, 1.0):
        probability = binom.pmf(k, 40, share * highest)
        assert (probability[:, np.newaxis] * returns).sum(axis=0).max() <= 1 + 1e-9
    worse = binom.pmf(k, 40, min(1.0, 2.5 * highest))[:, np.newaxis] * returns
    assert worse.sum(axis=0).max() > 1.001


def test_alone_the_candidate_is_held_against_what_stable_may_have_failed_at_most():
    state = two_sample.settle(two_sample.start(0.001, 200), counts(20, 0, 2000, 20))
    result = two_sample.settle_alone(state, counts(40, 4, 0, 0), margin=0.001)
    ceiling = binomtest(20, 2000, alternative="less").proportion_ci(1 - CEILING_RISK).high
    expected = capital.settle(
        state.purses, log_returns_alone(counts(40, 4, 0, 0), np.array(ceiling + 0.001))
    )
    assert result.purses == pytest.approx(expected)
    assert (result.candidate, result.candidate_hits, result.stable) == (60, 4, 2000)


@pytest.mark.parametrize("stable", [counts(0, 0, 0, 0), counts(0, 0, 30, 30)], ids=["none", "all"])
def test_alone_without_a_right_answer_of_stable_nothing_is_evidence(stable):
    state = two_sample.settle(two_sample.start(0.001, 200), stable)
    result = two_sample.settle_alone(state, counts(40, 40, 0, 0))
    assert capital.log_e(result.purses) == pytest.approx(capital.log_e(state.purses))


def test_an_alarm_stays_though_the_candidate_recovers():
    gate = two_sample.start(0.001, 200)
    for _ in range(5):
        gate = two_sample.settle(gate, counts(20, 5, 20, 0))
    peak = float(gate.peak)
    for _ in range(200):
        gate = two_sample.settle(gate, counts(20, 0, 20, 1))
    assert peak > np.log(100)
    assert float(gate.peak) == peak


def test_bets_know_nothing_of_the_block_they_are_on():
    gate = two_sample.start(0.5, 1)
    first = two_sample.settle(gate, counts(20, 20, 20, 0))
    guess = np.array(0.5)
    assert first.purses == pytest.approx(
        two_sample.settle(gate, counts(20, 20, 20, 0), stable_rate=guess).purses
    )
