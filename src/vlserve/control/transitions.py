"""The states that a version may move to, and the version that a rollback goes to. Pure."""

from collections.abc import Mapping, Sequence

from vlserve.control.domain import State
from vlserve.errors import NothingToRollBackTo

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.LOADING}),
    # retired: a version that was ready before, and could not be loaded again
    State.LOADING: frozenset({State.READY, State.FAILED, State.RETIRED}),
    State.READY: frozenset({State.CANARY, State.STABLE, State.DRAINING}),
    State.CANARY: frozenset({State.STABLE, State.READY}),
    State.STABLE: frozenset({State.READY, State.CANARY}),
    State.DRAINING: frozenset({State.RETIRED}),
    State.RETIRED: frozenset({State.LOADING, State.DELETED}),
    State.FAILED: frozenset({State.LOADING, State.DELETED}),
    State.DELETED: frozenset({State.LOADING}),  # its archive was registered again
}
"""State -> the states that a version may move to."""


def states_after(
    states: Mapping[int, State], weights: Mapping[int, int], stable: int
) -> dict[int, State]:
    """Return the versions whose state changes when ``weights`` come into force, with the new state.

    ``stable`` is the version that a rollback would keep; every other one with weight is a canary,
    and one that lost its weight stays loaded as ready.
    """
    after = {
        version: _state_with(weights, stable, version, state) for version, state in states.items()
    }
    return {version: state for version, state in after.items() if state is not states[version]}


def _state_with(weights: Mapping[int, int], stable: int, version: int, state: State) -> State:
    if version == stable:
        return State.STABLE
    if weights.get(version):
        return State.CANARY
    return State.READY if state in (State.STABLE, State.CANARY) else state


def rollback_target(model: str, stack: Sequence[int], version: int | None) -> int:
    """Return the version that a rollback goes to.

    Args:
        stack: the stable versions in force one over the other, the newest last.
        version: one of the earlier ones; None for the one before.

    Raises:
        NothingToRollBackTo: there is no such earlier version.
    """
    earlier = [entry for entry in stack[:-1] if entry != stack[-1]]
    if not earlier:
        raise NothingToRollBackTo(
            f"{model} has no earlier stable version; to move it anyway, release a version"
        )
    if version is None:
        return earlier[-1]
    if version not in earlier:
        choices = ", ".join(str(entry) for entry in dict.fromkeys(earlier))
        raise NothingToRollBackTo(
            f"{model} {version} is not an earlier stable version (those are {choices}); "
            f"to move traffic to it, release it"
        )
    return version
