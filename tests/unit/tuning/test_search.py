"""What is tried next, when it ends, and what counts as best."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from vlserve.control.tuning import Serving
from vlserve.tuning.search import (
    MAX_CONNECTIONS,
    Point,
    best_point,
    next_connections,
    next_serving,
)

START = Serving(workers=2, threads=1, batch_size=8, max_batch_delay_ms=1)
SLO_MS = 100.0


def point(connections: int, rps: float, p99_ms: float | None, errors: float = 0.0) -> Point:
    return Point(START, connections, rps, p99_ms, p99_ms, errors)


def test_connections_double_while_it_pays() -> None:
    points = [point(1, 50, 20)]
    assert next_connections([], SLO_MS, 1) == 1
    assert next_connections(points, SLO_MS, 1) == 2
    assert next_connections([*points, point(2, 90, 22)], SLO_MS, 1) == 4
    assert next_connections([*points, point(2, 51, 40)], SLO_MS, 1) is None  # pays no more
    assert next_connections([*points, point(2, 90, 101)], SLO_MS, 1) is None  # broke
    assert next_connections([*points, point(2, 90, 22, errors=0.01)], SLO_MS, 1) is None
    assert next_connections([point(MAX_CONNECTIONS, 90, 22)], SLO_MS, 1) is None


def test_connections_halve_until_the_limit_holds() -> None:
    assert next_connections([point(8, 90, 300)], SLO_MS, 8) == 4
    assert next_connections([point(8, 90, 300), point(4, 90, 99)], SLO_MS, 8) is None
    assert next_connections([point(1, 5, 300)], SLO_MS, 1) is None
    assert next_connections([point(1, 0, None)], SLO_MS, 1) is None


def test_the_best_has_the_most_throughput_that_held() -> None:
    good, more, late = point(4, 90, 60), point(8, 120, 95), point(16, 150, 101)
    assert best_point([good, more, late], SLO_MS) is more
    assert best_point([good, more, late, point(8, 119, 50)], SLO_MS) == point(8, 119, 50)
    assert best_point([late, point(8, 200, 10, errors=0.1), point(1, 0, None)], SLO_MS) is None


def test_neighbours_are_tried_one_after_the_other() -> None:
    trials, names = [START], []
    while (serving := next_serving(trials, START, cores=4)) is not None:
        trials.append(serving)
        names.append(str(serving))
    assert names == [
        "4 x 1, batch 8, 1 ms",
        "2 x 2, batch 8, 1 ms",
        "1 x 4, batch 8, 1 ms",
        "2 x 1, batch 16, 1 ms",
        "2 x 1, batch 4, 1 ms",
        "2 x 1, batch 8, 2 ms",
    ]


def test_where_a_batch_waits_for_nothing_no_delay_is_tried() -> None:
    trials = [on_triton := START.model_copy(update={"max_batch_delay_ms": 0})]
    while (serving := next_serving(trials, on_triton, cores=2)) is not None:
        trials.append(serving)
    assert len(trials) > 3
    assert {trial.max_batch_delay_ms for trial in trials} == {0}


@settings(max_examples=25)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(1, 20))
def test_any_machine_and_any_start_come_to_an_end(
    cores: int, workers: int, batch_size: int, delay_ms: int
) -> None:
    best = Serving(workers=workers, threads=1, batch_size=batch_size, max_batch_delay_ms=delay_ms)
    trials, names = [best], {str(best)}
    while (serving := next_serving(trials, best, cores)) is not None:
        assert str(serving) not in names
        trials.append(serving)
        names.add(str(serving))
        best = serving
        assert len(trials) < 5000


def test_what_the_client_limited_is_neither_climbed_nor_chosen() -> None:
    own, clients = point(4, 90, 60), replace(point(8, 200, 70), client_saturated=True)
    assert clients.verdict(SLO_MS) == "client saturated"
    assert best_point([own, clients], SLO_MS) is own
    assert next_connections([own, clients], SLO_MS, 4) is None
    assert next_connections([clients], SLO_MS, 8) == 4


def test_a_point_that_erred_never_held() -> None:
    assert point(1, 10, 10).held(SLO_MS)
    assert not replace(point(1, 10, 10), error_rate=0.001).held(SLO_MS)
    assert not point(1, 10, None).held(SLO_MS)
