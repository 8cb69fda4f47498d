"""What `vlserve watch` prints of a rollout whose state the service cannot read."""

import pytest

from vlserve.cli import release
from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView

ERROR = "the kept state of the rollout cannot be read (judge.policy.gates.drift: unknown)"


def view(status: RolloutStatus) -> RolloutView:
    return RolloutView(
        id=1,
        model="tagger",
        candidate=2,
        stable=1,
        status=status,
        weights=(5, 100),
        step=0,
        weight=5,
        shadow_percent=0,
        held_s=0.0,
        hold_s=60.0,
        started_at="then",
        ended_at=None,
        decision=None,
        windows=(),
        state_error=ERROR,
    )


def test_the_reason_is_what_it_waits_for() -> None:
    assert release._waits_for(view(RolloutStatus.RUNNING)) == ERROR


def test_the_reason_is_printed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    release._print_place(view(RolloutStatus.ABORTED))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["tagger is back on 1; 2 was taken back", ERROR]
