"""A release as the ledger and the judge know it -> what is said of it."""

from collections.abc import Iterator
from datetime import UTC, datetime

from vlserve.control.domain import GrayRelease, ReleaseStatus
from vlserve.control.judge import Decision, GateFigure
from vlserve.control.rollouts.metric_windows import Tally, Window
from vlserve.control.rollouts.state import Progress
from vlserve.control.wire.rollout_views import (
    DecisionView,
    GateView,
    ReleaseView,
    TallyView,
    WindowView,
)


def release_view(release: GrayRelease, progress: Progress) -> ReleaseView:
    judge = progress.judge
    under_way = release.status.under_way
    taken = {ReleaseStatus.PROMOTED: 100, ReleaseStatus.ROLLED_BACK: 0, ReleaseStatus.ABORTED: 0}
    return ReleaseView(
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


def _windows(progress: Progress) -> Iterator[Window]:
    yield from progress.windows.closed
    if progress.windows.current is not None:
        yield progress.windows.current


def _window(release: GrayRelease, window: Window) -> WindowView:
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


def _tally(version: int, tally: Tally) -> TallyView:
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


def _gate(gate: GateFigure) -> GateView:
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
