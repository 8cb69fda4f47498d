import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom

from vlserve.control.judge import agreement, capital
from vlserve.control.judge.agreement import BETS, PRIOR


def after(pairs: int, agreements: int, floor: float = 0.8) -> agreement.Agreement:
    return agreement.settle_agreement(
        agreement.start_agreement(), np.array(pairs), np.array(agreements), floor
    )


@pytest.mark.parametrize(
    ("pairs", "agreements", "rate"), [(30, 20, 0.8), (50, 50, 0.9), (9, 0, 0.1)]
)
def test_the_mixture_is_the_integral_it_stands_for(pairs, agreements, rate):
    def likelihood_ratio(p: float) -> float:
        return float(binom.pmf(agreements, pairs, p) / binom.pmf(agreements, pairs, rate))

    # Substituting p = sin(t)^2 makes the Beta(1/2, 1/2) prior flat.
    assert PRIOR == 0.5
    integral = quad(lambda t: likelihood_ratio(np.sin(t) ** 2) * 2 / np.pi, 0, np.pi / 2)[0]
    log_e = agreement.log_e_against(np.array(pairs), np.array(agreements), rate)
    assert np.exp(log_e) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.8, 0.97])
def test_the_mixture_is_worth_one_on_average(rate):
    agreements = np.arange(41.0)
    e_values = np.exp(agreement.log_e_against(np.full(41, 40.0), agreements, rate))
    assert (binom.pmf(agreements, 40, rate) * e_values).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("pairs", "agreements"), [(100, 95), (40, 40), (40, 0), (1, 1), (3000, 2400)]
)
def test_bounds_are_where_the_e_value_reaches_one_over_alpha(pairs, agreements):
    lower, upper = agreement.bounds(pairs, agreements, 0.01)
    rates = np.linspace(1e-6, 1 - 1e-6, 200_001)
    e_values = agreement.log_e_against(np.array(pairs), np.array(agreements), rates)
    interval = rates[e_values < np.log(100)]
    assert lower == pytest.approx(interval.min(), abs=1e-4)
    assert upper == pytest.approx(interval.max(), abs=1e-4)


def test_bounds_are_wider_than_those_for_a_single_look():
    lower, upper = agreement.bounds(200, 180, 0.05)
    assert lower < beta.ppf(0.025, 180, 21)
    assert upper > beta.ppf(0.975, 181, 20)


def test_no_pairs_no_bounds():
    assert agreement.bounds(0, 0, 0.01) == (0.0, 1.0)


def test_alarms_below_the_floor_only():
    assert after(200, 100).peak > np.log(100)
    assert after(200, 199).peak == 0


def test_score_bets_gain_nothing_on_average_at_the_ceiling():
    for values in ([0.0, 1.0], [0.1, 0.6], [0.3]):
        low, high = values[0], values[-1]
        probability = (0.3 - low) / (high - low) if high > low else 1.0
        returns = np.array([1 + BETS / 0.3 * (value - 0.3) for value in (low, high)])
        assert (returns >= 0).all()
        assert (1 - probability) * returns[0] + probability * returns[1] == pytest.approx(1.0)
        start = agreement.start_score_distance()
        bet = agreement.settle_score_distance(start, np.array([high]), 0.3)
        cash_and_bets = np.exp(start.purses) * [1, *(returns[1])]
        assert np.exp(capital.log_e(bet.purses)) == pytest.approx(cash_and_bets.sum())


def test_scores_far_apart_alarm_and_near_ones_do_not():
    rng = np.random.default_rng(0)
    far = near = agreement.start_score_distance()
    for _ in range(10):
        far = agreement.settle_score_distance(far, rng.uniform(0.2, 0.6, 20), 0.2)
        near = agreement.settle_score_distance(near, rng.uniform(0.0, 0.3, 20), 0.2)
    assert far.peak > np.log(200)
    assert near.peak < np.log(3)
