from hypothesis import given
from hypothesis import strategies as st

from vlserve.loadgen.max_rate import LOWEST_RATE_PER_S, MAX_STEPS, PRECISION, bounds, next_rate


def search(capacity: float, start: float = 8.0) -> list[tuple[float, bool]]:
    trials: list[tuple[float, bool]] = []
    while (rate := next_rate(trials, start)) is not None:
        trials.append((rate, rate <= capacity))
    return trials


def test_doubles_until_one_breaks_then_bisects() -> None:
    rates = [rate for rate, _ in search(100)]
    assert rates[:5] == [8, 16, 32, 64, 128]
    assert rates[5] == 90.5
    assert len(rates) <= 9


@given(st.floats(min_value=LOWEST_RATE_PER_S, max_value=2000), st.floats(2, 100))
def test_brackets_the_capacity(capacity: float, start: float) -> None:
    trials = search(capacity, start)
    lower, upper = bounds(trials)
    assert len(trials) <= MAX_STEPS
    assert upper is not None and upper > capacity
    if lower is None:
        assert upper < 2 * LOWEST_RATE_PER_S
    else:
        assert lower <= capacity
        assert upper / lower <= PRECISION * 1.05


def test_ends_where_nothing_holds() -> None:
    trials = search(0.0)
    assert bounds(trials) == (None, LOWEST_RATE_PER_S)


def test_ends_where_nothing_breaks() -> None:
    trials = search(float("inf"))
    lower, upper = bounds(trials)
    assert (len(trials), upper) == (MAX_STEPS, None)
    assert lower == 8.0 * 2 ** (MAX_STEPS - 1)


def test_a_rate_that_held_above_one_that_broke_does_not_count() -> None:
    assert bounds([(8, True), (16, False), (32, True)]) == (8, 16)
