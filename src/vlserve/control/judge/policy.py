"""The policy in serving_config/rollout.yaml: what a rollout must show, and how surely."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vlserve.errors import SettingsError
from vlserve.runtime.errors import wrong_fields
from vlserve.strict_numbers import StrictNumbers
from vlserve.yaml_files import read_mapping

Share = Annotated[float, Field(gt=0, le=1)]
"""The part of alpha that one gate may spend."""


class Minimum(StrictNumbers):
    """Evidence without which no step is left."""

    candidate: int = Field(default=400, ge=1)
    """Outcomes of the candidate, in each step."""
    stable: int = Field(default=400, ge=1)
    """Outcomes of stable, in each step that gives it weight."""
    units: int = Field(default=400, ge=1)
    """Draws of the gateway (requests without a key, callers with one), in each such step."""
    pairs: int = Field(default=200, ge=1)
    """Shadow pairs, where the rollout has a shadow."""


class RateGate(StrictNumbers):
    """``margin``: a difference of the two rates that is tolerated."""

    share: Share
    margin: float = Field(ge=0, lt=1)


class LatencyGate(StrictNumbers):
    """``margin``: how much slower is tolerated; 0.2 is 20 %."""

    share: Share
    margin: float = Field(ge=0)


class SampleRatioGate(StrictNumbers):
    share: Share


class AgreementGate(StrictNumbers):
    """``floor``: the rate of equal top tags under which the candidate is another product."""

    share: Share
    floor: float = Field(gt=0, lt=1)


class ScoreDistanceGate(StrictNumbers):
    """``ceiling``: the mean distance of scores that is tolerated."""

    share: Share
    ceiling: float = Field(gt=0, lt=1)


class Gates(StrictNumbers):
    """One entry a gate. The shares of alpha add up to 1 at most."""

    errors: RateGate = RateGate(share=0.25, margin=0.001)
    latency_p50: LatencyGate = LatencyGate(share=0.1, margin=0.2)
    latency_p99: LatencyGate = LatencyGate(share=0.2, margin=0.3)
    sample_ratio: SampleRatioGate = SampleRatioGate(share=0.1)
    agreement: AgreementGate = AgreementGate(share=0.15, floor=0.8)
    score_distance: ScoreDistanceGate = ScoreDistanceGate(share=0.1, ceiling=0.2)
    tags: RateGate = RateGate(share=0.1, margin=0.1)

    @model_validator(mode="after")
    def _spend_alpha_once(self) -> "Gates":
        total = sum(getattr(self, name).share for name in type(self).model_fields)
        if total > 1 + 1e-9:
            raise ValueError(f"the gates' shares of alpha add up to {total:g}, more than 1")
        return self


class Policy(StrictNumbers):
    """How one rollout is judged. It is kept in its state: an edit counts from the next one."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability that a candidate no worse than stable is rolled back by any gate, ever."""
    weights: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (5, 25, 50, 100)
    hold_s: float = Field(default=60.0, ge=0)
    """The shortest stay at each weight."""
    shadow_percent: int = Field(default=0, ge=0, le=100)
    """Requests copied to the candidate before it gets weight, in per cent; 0: no shadow."""
    keep_s: float = Field(default=600.0, ge=0)
    """How long a candidate that was taken back stays loaded, to examine it."""
    recovery: Literal["resume", "rollback"] = "resume"
    """What a restart of the control service, the gateway or the engine means to a rollout."""
    unit: Literal["caller", "request"] = "caller"
    """What counts as one observation of a caller with a sticky key: the caller, once in a rollout,
    or each of the caller's requests."""
    minimum: Minimum = Minimum()
    gates: Gates = Gates()

    @field_validator("weights")
    @classmethod
    def _weights_rise(cls, weights: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in itertools.pairwise(weights)):
            raise ValueError(f"weights {list(weights)} do not rise")
        if not weights or weights[-1] != 100:
            raise ValueError(f"weights {list(weights)} do not end at 100")
        return weights

    def alpha_of(self, gate: str) -> float:
        """Return what ``gate`` may spend of alpha; it alarms at an e-value of one over this."""
        share: float = getattr(self.gates, gate).share
        return self.alpha * share


def load_policy(file: Path, changes: Mapping[str, Any] | None = None) -> Policy:
    """Read rollout.yaml; ``changes`` (one rollout's own weights or hold) win over it.

    Raises:
        SettingsError: names each wrong entry, and whether the file or a change has it.
    """
    content, changes = read_mapping(file), changes or {}
    try:
        return Policy.model_validate({**content, **changes})
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        changed = any(item["loc"] and item["loc"][0] in changes for item in items)
        where = "changes of this release" if changed else file.name
        raise SettingsError(f"{where}: {wrong_fields(error, 'policy')}") from error
