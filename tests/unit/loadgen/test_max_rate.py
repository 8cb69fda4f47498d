from hypothesis import given
from hypothesis import strategies as st

from vlserve.loadgen.max_rate import LOWEST_RATE_PER_S, MAX_STEPS, PRECISION, bounds, next_rate


def search(capacity: float, start: float = 8.0) -> list[tuple[float, bool]]:
    tried: list[tuple[float, bool]] = []
    while (rate := next_rate(tried, start)) is not None:
        tried.append((rate, rate <= capacity))
    return tried


def test_doubles_until_one_breaks_then_bisects() -> None:
    rates = [rate for rate, _ in search(100)]
    assert rates[:5] == [8, 16, 32, 64, 128]
    assert rates[5] == 90.5
    assert len(rates) <= 9


@given(st.floats(min_value=LOWEST_RATE_PER_S, max_value=2000), st.floats(2, 100))
def test_brackets_the_capacity(capacity: float, start: float) -> None:
    tried = search(capacity, start)
    held, broken = bounds(tried)
    assert len(tried) <= MAX_STEPS
    assert broken is not None and broken > capacity
    if held is None:
        assert broken < 2 * LOWEST_RATE_PER_S
    else:
        assert held <= capacity
        assert broken / held <= PRECISION * 1.05


def test_ends_where_nothing_holds() -> None:
    tried = search(0.0)
    assert bounds(tried) == (None, LOWEST_RATE_PER_S)


def test_ends_where_nothing_breaks() -> None:
    tried = search(float("inf"))
    held, broken = bounds(tried)
    assert (len(tried), broken) == (MAX_STEPS, None)
    assert held == 8.0 * 2 ** (MAX_STEPS - 1)


def test_a_rate_that_held_above_one_that_broke_does_not_count() -> None:
    assert bounds([(8, True), (16, False), (32, True)]) == (8, 16)
