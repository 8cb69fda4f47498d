"""What a rollout's judge knows, as the ledger keeps it: all that a restart must not forget.

The ledger may hold a state that this code cannot read, as after a downgrade or when a gate was
renamed. `read_state` returns StateUnreadable for it, and whoever takes traffic back or promotes by
hand works with that as well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlserve.control.judge import Decision, JudgeState
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
    ``copies``: up to where the logs were read. ``answers``: where the rollout's answers begin.
    ``starts``: which start of each process served the rollout last, so that a restart is noticed.
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
            StateUnreadable: it is not JSON, has a newer schema, or fields that this code lacks.
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
        if not 0 <= state.judge.step < len(state.judge.weights):
            raise StateUnreadable(
                f"it is at step {state.judge.step} of {len(state.judge.weights)} weights"
            )
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
        fields = json.loads(text)
    except ValueError as error:
        raise StateUnreadable(f"it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise StateUnreadable("it is no JSON object")
    return fields


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_JSON = TypeAdapter(RolloutState)
