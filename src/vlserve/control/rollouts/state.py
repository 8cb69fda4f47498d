"""How far one release is: all that a restart must not forget."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from vlserve.control.judge import Decision, JudgeState
from vlserve.control.rollouts.log_evidence import Copy
from vlserve.control.rollouts.log_reader import Cursor
from vlserve.control.rollouts.metric_windows import MetricWindows


@dataclass(frozen=True, eq=False)
class RolloutState:
    """``held_s``: since the step's weight came into force, pauses not counted. ``requests``,
    ``copies``: up to where the logs were read. ``answers``: where the release's answers begin.
    ``starts``: which start of each process served the release last, so that a restart is noticed.
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

    def to_json(self) -> str:
        return _JSON.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "RolloutState":
        return _JSON.validate_json(text)


_JSON = TypeAdapter(RolloutState)
