"""Which step was surely in force when, by what the control service answered."""

import itertools
from collections.abc import Iterator

import pytest

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.drill import release_watch as followed
from vlserve.drill.release_watch import follow


def view(step: int, status: RolloutStatus = RolloutStatus.RUNNING) -> RolloutView:
    weights = (10, 50, 100)
    return RolloutView(
        id=1, model="m", candidate=2, stable=1, status=status, weights=weights, step=step,
        weight=weights[step], shadow_percent=0, held_s=1, hold_s=1, started_at="", ended_at=None,
        decision=None, windows=(),
    )  # fmt: skip


class Answers:
    """A control service that answers one view after the other, each 0.3 s after it was asked."""

    def __init__(self, views: list[RolloutView], clock: "Clock") -> None:
        self._views = iter(views)
        self._clock = clock

    def rollout(self, model: str) -> RolloutView:
        self._clock.sleep(0.3)
        return next(self._views)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(followed, "time", clock)
    yield clock


def test_a_step_lasts_from_its_first_answer_to_the_last_question(clock: Clock) -> None:
    views = [view(0), view(0), view(1), view(1), view(2), view(2, RolloutStatus.PROMOTED)]
    lines: list[str] = []
    result = follow(Answers(views, clock), view(0), 60, lines.append)  # type: ignore[arg-type]

    assert not result.timed_out
    assert result.view.status is RolloutStatus.PROMOTED
    steps = [(s.weight, round(s.begun, 1), round(s.ended, 1)) for s in result.steps]
    # Asked at 100.2, 100.7, 101.2 …, answered 0.3 s later.
    assert steps == [(10, 100.0, 100.7), (50, 101.5, 101.7), (100, 102.5, 102.5)]
    assert lines == ["m 2 at 10 %", "m 2 at 50 %", "m 2 at 100 %"]


def test_a_release_that_does_not_end_in_time(clock: Clock) -> None:
    endless = Answers(list(itertools.repeat(view(0), 1000)), clock)
    result = follow(endless, view(0), 10, lambda message: None)  # type: ignore[arg-type]
    assert result.timed_out
    assert clock.now < 112


def test_who_watches_may_end_it(clock: Clock) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(Answers([view(0)], clock), view(0), 10, lambda message: None, fail)  # type: ignore[arg-type]
