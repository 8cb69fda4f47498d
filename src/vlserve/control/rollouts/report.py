"""One rollout for people: what the ledger and its judge know of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.judge import Decision
from vlserve.control.rollouts.metric_windows import MetricWindow, VersionMetrics
from vlserve.control.rollouts.state import RolloutState

_FINAL_WEIGHT = {
    RolloutStatus.PROMOTED: 100,
    RolloutStatus.ROLLED_BACK: 0,
    RolloutStatus.ABORTED: 0,
}


@dataclass(frozen=True)
class RolloutReport:
    """``weights``: the candidate's, by step; 0: a shadow. ``weight``: the candidate's, now; 0 after
    it was taken back. ``windows``: evidence by version, oldest first. ``state_error``: why the
    judge's state cannot be read, and what to do; there is no decision and no evidence then.
    ``unrecorded``: why the ledger does not know yet that the rollout ended."""

    id: int
    model: str
    candidate: int
    stable: int
    status: RolloutStatus
    weights: tuple[int, ...]
    step: int
    weight: int
    shadow_percent: int
    held_s: float
    hold_s: float
    started_at: str
    ended_at: str | None
    decision: Decision | None
    windows: tuple[MetricWindow, ...]
    state_error: str = ""
    unrecorded: str = ""


@dataclass(frozen=True)
class ReportedMetrics(VersionMetrics):
    """The metrics of a window, with the version that they are of."""

    version: int = 0


def report(rollout: Rollout, state: RolloutState) -> RolloutReport:
    """Return what is known of a rollout."""
    return RolloutReport(
        **_of_ledger(rollout, state.judge.weights),
        held_s=round(state.held_s, 1),
        hold_s=state.judge.policy.hold_s,
        decision=state.decision,
        windows=tuple(_with_versions(window, rollout) for window in state.windows.all),
    )


def report_unreadable(rollout: Rollout, start: Mapping[str, Any], error: str) -> RolloutReport:
    """Return what is known of a rollout whose state cannot be read.

    Args:
        start: the detail of its ``release_started`` event.
    """
    return RolloutReport(
        **_of_ledger(rollout, tuple(start["steps"])),
        held_s=0.0,
        hold_s=start["hold_s"],
        decision=None,
        windows=(),
        state_error=error,
    )


def _of_ledger(rollout: Rollout, weights: tuple[int, ...]) -> dict[str, Any]:
    under_way = rollout.status.under_way
    return {
        "id": rollout.id,
        "model": rollout.model,
        "candidate": rollout.candidate,
        "stable": rollout.stable,
        "status": rollout.status,
        "weights": weights,
        "step": rollout.step,
        "weight": weights[rollout.step] if under_way else _FINAL_WEIGHT[rollout.status],
        "shadow_percent": rollout.shadow_percent if under_way else 0,
        "started_at": rollout.started_at,
        "ended_at": rollout.ended_at,
    }


def _with_versions(window: MetricWindow, rollout: Rollout) -> MetricWindow:
    return replace(
        window,
        candidate=ReportedMetrics(**vars(window.candidate), version=rollout.candidate),
        stable=ReportedMetrics(**vars(window.stable), version=rollout.stable),
    )
