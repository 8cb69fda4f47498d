"""What a rollout's judge knows, as the ledger keeps it: all that a restart must not forget.

The ledger may hold a state that this code cannot read, as after a downgrade or when a gate was
renamed. `read_state` returns StateUnreadable for it, and whoever takes traffic back or promotes by
hand works with that as well.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from vlserve.control.judge import Decision, JudgeState, Policy, tags
from vlserve.control.judge.seen_callers import SeenCallers
from vlserve.control.rollouts.log_evidence import Copy
from vlserve.control.rollouts.log_reader import Cursor
from vlserve.control.rollouts.metric_windows import MetricWindows
from vlserve.errors import ControlError
from vlserve.runtime.errors import wrong_fields

SCHEMA = 1
"""The number that is written; the release 0.1.0 wrote the same fields without a number."""

_LONGEST = 300  # characters of a reason: a state of another shape has hundreds of wrong fields


@dataclass(frozen=True, eq=False)
class RolloutState:
    """``held_s``: time since the step's weight came into force, pauses not counted. ``requests``,
    ``copies``: up to where the logs were read. ``answers``: where those begin that may still be
    asked for. ``starts``: which start of each process served the rollout last, so that a restart is
    noticed.
    """

    judge: JudgeState
    requests: Cursor
    copies: Cursor
    answers: Cursor
    waiting: tuple[Copy, ...] = ()
    held_s: float = 0.0
    starts: Mapping[str, str] = field(default_factory=dict)
    windows: MetricWindows = field(default_factory=MetricWindows)
    decision: Decision | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the text for the ledger."""
        return _JSON.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "RolloutState":
        """Read what `to_json` wrote, now or in an earlier version.

        Raises:
            StateUnreadable: it is not JSON, has a newer schema, fields that this code lacks, or
                values that no rollout can have.
        """
        schema = _json_object(text).get("schema", 0)
        if not isinstance(schema, int) or not 0 <= schema <= SCHEMA:
            raise StateUnreadable(f"it has schema {schema}, this vlserve reads {SCHEMA}")
        try:
            state = _JSON.validate_json(text)
        except ValidationError as error:
            raise StateUnreadable(_shortened(wrong_fields(error, "state"))) from error
        except (TypeError, ValueError) as error:  # an array of something else than numbers
            raise StateUnreadable(str(error)) from error
        for problem in _problems(state):
            raise StateUnreadable(problem)
        return state


class StateUnreadable(ControlError):
    """The kept state of a rollout cannot be read by this code; the message says why."""

    code = "state_unreadable"


KeptState = RolloutState | StateUnreadable
"""What the ledger's text turned out to be."""


def read_state(text: str) -> KeptState:
    """Return the state in ``text``, or why it cannot be read."""
    try:
        return RolloutState.from_json(text)
    except StateUnreadable as error:
        return error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateUnreadable(f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StateUnreadable("it is no JSON object")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _problems(state: RolloutState) -> Iterator[str]:
    """Yield what would stop the judge in the middle of an evaluation, though each field has its
    type."""
    judge = state.judge
    if not 0 <= judge.step < len(judge.weights):
        yield f"it is at step {judge.step} of {len(judge.weights)} weights"
    if any(cursor.offset < 0 for cursor in (state.requests, state.copies, state.answers)):
        yield "a place in a log is before its beginning"
    try:
        SeenCallers(judge.seen_callers)
    except ValueError as error:
        yield f"judge.seen_callers: {error}"
    empty = replace(JudgeState.start(Policy()), tags=tags.start(judge.tags.names))
    yield from _wrong_arrays(judge, empty, "judge")
    yield from _wrong_arrays(state.windows, MetricWindows(), "windows")


def _wrong_arrays(state: Any, empty: Any, name: str) -> Iterator[str]:
    """Yield each array of ``state`` that has another shape than in ``empty``, or no finite
    numbers."""
    if isinstance(empty, np.ndarray):
        if state.shape != empty.shape:
            yield f"{name} has shape {state.shape}, not {empty.shape}"
        elif not np.isfinite(state).all():
            yield f"{name} holds something else than finite numbers"
    elif is_dataclass(empty):
        for each in fields(empty):
            yield from _wrong_arrays(
                getattr(state, each.name), getattr(empty, each.name), f"{name}.{each.name}"
            )


_JSON = TypeAdapter(RolloutState)
