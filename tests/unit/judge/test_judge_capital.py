import numpy as np
import pytest

from vlserve.control.judge import capital


def test_starts_with_one():
    assert np.exp(capital.log_e(capital.start(7, (3,)))) == pytest.approx(np.ones(3))


def test_sharing_changes_no_total():
    purses = capital.start(3)
    returns = np.array([0.7, -0.2, 1.1])
    balances = np.exp(purses) * np.exp([0.0, *returns])
    assert np.exp(capital.log_e(capital.settle(purses, returns))) == pytest.approx(balances.sum())


def test_no_bet_dies():
    purses = capital.start(2)
    for _ in range(1000):
        purses = capital.settle(purses, np.array([-5.0, -0.001]))
    assert capital.log_e(purses) > -1.5
    for _ in range(10):
        purses = capital.settle(purses, np.array([2.0, 0.0]))
    assert capital.log_e(purses) > np.log(100)


def test_leading_axes_are_releases_of_their_own():
    returns = np.random.default_rng(0).normal(size=(5, 3))
    together = capital.settle(capital.start(3, (5,)), returns)
    rows = np.array([capital.settle(capital.start(3), row) for row in returns])
    assert together == pytest.approx(rows)
