"""Which states follow which weights, and where a rollback goes."""

import pytest

from vlserve.control.domain import State
from vlserve.control.transitions import rollback_target, states_after
from vlserve.errors import NothingToRollBackTo


def test_states_follow_weights() -> None:
    before = {1: State.STABLE, 2: State.READY, 3: State.RETIRED}
    assert states_after(before, {2: 100}, stable=2) == {1: State.READY, 2: State.STABLE}
    assert states_after(before, {2: 5, 1: 95}, stable=1) == {2: State.CANARY}
    canary = {1: State.STABLE, 2: State.CANARY}
    assert states_after(canary, {2: 100}, stable=2) == {1: State.READY, 2: State.STABLE}
    assert states_after(canary, {1: 100}, stable=1) == {2: State.READY}


def test_rollback_goes_to_the_one_before_or_to_a_named_earlier_one() -> None:
    assert rollback_target("tagger", (1, 2), None) == 1
    assert rollback_target("tagger", (1, 2, 3), 1) == 1
    assert rollback_target("tagger", (1, 2, 1), None) == 2


@pytest.mark.parametrize(
    ("stack", "version", "message"),
    [
        ((), None, "no earlier stable version"),
        ((1,), None, "no earlier stable version"),
        ((1,), 1, "no earlier stable version"),
        ((1, 2), 2, r"2 is not an earlier stable version \(those are 1\)"),
        ((1, 2), 3, r"3 is not an earlier stable version \(those are 1\).*release it"),
    ],
)
def test_rollback_to_nowhere_says_so(
    stack: tuple[int, ...], version: int | None, message: str
) -> None:
    with pytest.raises(NothingToRollBackTo, match=message):
        rollback_target("tagger", stack, version)
