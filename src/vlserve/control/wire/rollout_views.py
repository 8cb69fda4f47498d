"""What goes over HTTP of a rollout."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.views import View


def _iso_time(start: int | str) -> str:
    """Return Unix time, s, as ISO 8601; what came over HTTP already is."""
    return start if isinstance(start, str) else datetime.fromtimestamp(start, UTC).isoformat()


class NeedView(View):
    """How much evidence a gate has, and how much it asks for before a step is left."""

    kind: str = Field(description="candidate, stable, callers or pairs.")
    what: str
    seen: float
    minimum: int


class GateView(View):
    """One gate at the last evaluation; docs/gray-release.md says what each tests."""

    gate: str
    verdict: str = Field(description="clear, waiting or alarm.")
    summary: str
    waits_for: str
    e_value: float = Field(description="Evidence against the candidate; 1 is none.")
    peak_e_value: float
    threshold: float = Field(description="The gate alarms once the peak has reached this.")
    figures: Mapping[str, float]
    need: NeedView | None = Field(default=None, description="Null in what older code kept.")


class DecisionView(View):
    action: str = Field(description="advance, hold or rollback.")
    reason: str
    gates: tuple[GateView, ...]


class TallyView(View):
    """One version in one window."""

    version: int
    requests: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    labels: Mapping[str, int] = Field(description="How often each was the answer's first.")


class WindowView(View):
    """What was counted in some seconds of a step."""

    start: Annotated[str, BeforeValidator(_iso_time)] = Field(description="UTC, ISO 8601.")
    step: int
    weight: int
    candidate: TallyView
    stable: TallyView
    stability_index: float | None = Field(
        description="Population stability index of the labels; a figure, not a gate."
    )
    pairs: int = Field(description="Requests that both versions answered, in a shadow.")
    agreeing: int
    score_distance: float | None
    e_values: Mapping[str, float] = Field(
        default_factory=dict, description="Gate -> its e-value at the end of the window."
    )


class RolloutView(View):
    """A rollout (a stepped release), under way or ended."""

    id: int
    model: str
    candidate: int
    stable: int
    status: RolloutStatus
    weights: tuple[int, ...] = Field(description="Of the candidate, by step; 0: a shadow.")
    step: int
    weight: int = Field(description="The candidate's, now; 0 after it was taken back.")
    shadow_percent: int = Field(description="Requests copied to the candidate, now.")
    held_s: float = Field(description="Since this step began, pauses not counted.")
    hold_s: float
    started_at: str
    ended_at: str | None
    decision: DecisionView | None = Field(
        description="The judge's last, also where a person ended it; null where unreadable."
    )
    windows: tuple[WindowView, ...] = Field(description="Evidence by version, oldest first.")
    state_error: str = Field(
        default="",
        description="Why the judge's state cannot be read, and what to do; empty otherwise.",
    )
    unrecorded: str = Field(
        default="",
        description="Why the ledger does not know yet that the rollout ended; empty otherwise.",
    )


class VerdictView(View):
    """What the judge makes of two versions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tagger",
                    "source": "gateway",
                    "candidate": "2",
                    "stable": "1",
                    "since": "2026-01-31T09:30:00+00:00",
                    "weight": None,
                    "verdict": "advance",
                    "reason": "every gate is clear at 50 %, held for 600 s",
                    "requests": 2000,
                    "unread_bytes": 0,
                    "gates": [],
                }
            ]
        }
    )

    model: str
    source: str = Field(description="gateway: its log; observations: what another one sent.")
    candidate: str
    stable: str
    since: str = Field(description="UTC, ISO 8601.")
    weight: int | None = Field(
        description="The candidate's share of the requests, percent; null where it is not known."
    )
    verdict: str = Field(description="advance, hold or rollback.")
    reason: str
    requests: int = Field(description="That were counted.")
    unread_bytes: int = Field(description="Of the log, which the next answer reads.")
    gates: tuple[GateView, ...]


class ObservationsTaken(View):
    """What became of the lines of one body."""

    accepted: int
    repeated: int = Field(description="Lines whose id had come before: they count once.")
