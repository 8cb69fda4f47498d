"""What the judge remembers of one rollout: of bounded size, and writable as JSON."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, TypeAdapter

from vlserve.control.judge import agreement, latency, sample_ratio, tags, two_sample
from vlserve.control.judge.agreement import Agreement, ScoreDistance
from vlserve.control.judge.evidence import Outcome
from vlserve.control.judge.latency import Latency
from vlserve.control.judge.policy import Policy
from vlserve.control.judge.sample_ratio import SampleRatio
from vlserve.control.judge.tags import Tags
from vlserve.control.judge.two_sample import Comparison
from vlserve.errors import SettingsError


@dataclass(frozen=True, eq=False)
class JudgeState:
    """One rollout so far; `vlserve.control.judge.observe` returns the state after more evidence."""

    policy: Policy
    weights: tuple[int, ...]
    """The candidate's weight in each step, per cent; 0 first where a shadow precedes the canary."""
    has_tags: bool
    """Whether answers name tags, so that evidence about tags is waited for."""
    errors: Comparison
    latency: Latency
    sample_ratio: SampleRatio
    agreement: Agreement
    score_distance: ScoreDistance
    tags: Tags
    step: int = 0
    step_candidate: int = 0
    step_stable: int = 0
    """Outcomes counted in this step, by version."""
    repeats: int = 0
    """Requests not counted: their caller was counted already, or is another step's."""
    seen_callers: str = ""
    open_block: tuple[Outcome, ...] = ()
    """Outcomes that wait for their block to fill."""
    salt: Annotated[str, Field(max_length=64)] = ""
    """The rollout's secret; empty in one that began before there were any."""
    has_split: bool = True
    """Whether the candidate's share of the requests is known, so that it is held against the
    weight."""

    @classmethod
    def start(
        cls,
        policy: Policy,
        *,
        shadow: bool = False,
        has_tags: bool = True,
        salt: str = "",
        has_split: bool = True,
    ) -> Self:
        """Return the state before the first evidence.

        Args:
            shadow: whether a step with copies alone precedes the weights.
            has_tags: whether both versions log the tags of their answers.
            salt: the rollout's secret, ASCII; it keys the hash of callers.
            has_split: whether the weights are those by which requests are split.

        Raises:
            SettingsError: no step would compare the two versions.
        """
        weights = (0, *policy.weights) if shadow else policy.weights
        if len(weights) == 1:
            raise SettingsError(
                "a release straight to 100 cannot be judged: give it a lower weight first, or a "
                "shadow, or release it --now"
            )
        return cls(
            policy=policy,
            weights=weights,
            has_tags=has_tags,
            errors=two_sample.start(expected_rate=0.001, weight=200),
            latency=latency.start(),
            sample_ratio=sample_ratio.start(),
            agreement=agreement.start_agreement(),
            score_distance=agreement.start_score_distance(),
            tags=tags.start(),
            salt=salt,
            has_split=has_split,
        )

    @property
    def weight(self) -> int:
        """The candidate's weight now, per cent."""
        return self.weights[self.step]

    @property
    def next_weight(self) -> int | None:
        """The candidate's weight in the next step, per cent; None at the last step."""
        return self.weights[self.step + 1] if self.step + 1 < len(self.weights) else None

    @property
    def compares(self) -> bool:
        """Whether both versions have weight, so that the gateway draws lots."""
        return 0 < self.weight < 100

    @property
    def shadowed(self) -> bool:
        """Whether the rollout began as a shadow."""
        return self.weights[0] == 0

    def to_json(self) -> bytes:
        """Return JSON from which `from_json` makes an equal state."""
        return _JSON.dump_json(self)

    @staticmethod
    def from_json(text: bytes | str) -> "JudgeState":
        """Read a state. Raises pydantic.ValidationError if ``text`` is not what ``to_json``
        wrote."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(JudgeState)
