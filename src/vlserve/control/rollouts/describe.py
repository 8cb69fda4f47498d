"""A release as the ledger and the judge know it -> what is said of it."""

from collections.abc import Iterator
from datetime import UTC, datetime

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.judge import Decision, GateResult
from vlserve.control.rollouts.metric_windows import MetricWindow, VersionMetrics
from vlserve.control.rollouts.state import RolloutState
from vlserve.control.wire.rollout_views import (
    DecisionView,
    GateView,
    RolloutView,
    TallyView,
    WindowView,
)


def rollout_view(release: Rollout, progress: RolloutState) -> RolloutView:
    judge = progress.judge
    under_way = release.status.under_way
    taken = {RolloutStatus.PROMOTED: 100, RolloutStatus.ROLLED_BACK: 0, RolloutStatus.ABORTED: 0}
    return RolloutView(
        id=release.id,
        model=release.model,
        candidate=release.candidate,
        stable=release.stable,
        status=release.status,
        weights=judge.weights,
        step=release.step,
        weight=judge.weight if under_way else taken[release.status],
        shadow_percent=release.shadow_percent if under_way else 0,
        held_s=round(progress.held_s, 1),
        hold_s=judge.policy.hold_s,
        started_at=release.started_at,
        ended_at=release.ended_at,
        decision=progress.decision and _decision(progress.decision),
        windows=tuple(_window(release, window) for window in _windows(progress)),
    )


def _windows(progress: RolloutState) -> Iterator[MetricWindow]:
    yield from progress.windows.closed
    if progress.windows.current is not None:
        yield progress.windows.current


def _window(release: Rollout, window: MetricWindow) -> WindowView:
    return WindowView(
        start=datetime.fromtimestamp(window.start, UTC).isoformat(),
        step=window.step,
        weight=window.weight,
        candidate=_tally(release.candidate, window.candidate),
        stable=_tally(release.stable, window.stable),
        stability_index=window.stability_index,
        pairs=window.pairs,
        agreeing=window.agreeing,
        score_distance=window.score_distance,
    )


def _tally(version: int, tally: VersionMetrics) -> TallyView:
    return TallyView(
        version=version,
        requests=tally.requests,
        failed=tally.failed,
        p50_ms=tally.p50_ms,
        p99_ms=tally.p99_ms,
        labels=tally.labels,
    )


def _decision(decision: Decision) -> DecisionView:
    return DecisionView(
        action=decision.action,
        reason=decision.reason,
        gates=tuple(_gate(gate) for gate in decision.gates),
    )


def _gate(gate: GateResult) -> GateView:
    return GateView(
        gate=gate.gate,
        verdict=gate.verdict,
        summary=gate.summary,
        waits_for=gate.waits_for,
        e_value=gate.e_value,
        peak_e_value=gate.peak_e_value,
        threshold=gate.threshold,
        figures=gate.figures,
    )
