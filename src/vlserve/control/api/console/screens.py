"""What each screen shows, from what the service knows. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlserve.control.api.console.charts import Plot, log_plot, plot, sparkline
from vlserve.control.domain import Event, ModelStatus, StackStatus
from vlserve.control.gateway.recent_requests import ModelTraffic
from vlserve.control.judge.gates import GateResult
from vlserve.control.rollouts.metric_windows import WINDOW_S, MetricWindow
from vlserve.control.rollouts.report import RolloutReport

Screen = Mapping[str, Any]
"""The values that a template shows."""

_RATE_WINDOWS = 12
"""The last windows whose rates say how long the evidence still takes."""


@dataclass(frozen=True)
class ModelRow:
    """One model on the screen Now. ``verdict``: the judge's action; empty outside of a rollout."""

    status: ModelStatus
    traffic: ModelTraffic
    spark: str
    candidate: int | None
    verdict: str
    last: Event | None


@dataclass(frozen=True)
class GateRow:
    """One gate. ``seconds``: how long its evidence takes at the present rate; None: unknown, or
    there is enough."""

    result: GateResult
    seconds: float | None


def now_screen(
    models: Sequence[ModelStatus],
    traffic: Mapping[str, ModelTraffic],
    rollouts: Mapping[str, RolloutReport],
    last: Mapping[str, Event],
    health: StackStatus,
) -> Screen:
    """Show every model: what serves, how it does, what was last changed."""
    return {
        "rows": [
            _row(model, traffic, rollouts.get(model.model), last.get(model.model))
            for model in models
        ],
        "troubles": health.troubles,
    }


def _row(
    model: ModelStatus,
    traffic: Mapping[str, ModelTraffic],
    rollout: RolloutReport | None,
    last: Event | None,
) -> ModelRow:
    figures = traffic.get(model.model, ModelTraffic(model=model.model))
    under_way = rollout is not None and rollout.status.under_way
    decision = rollout.decision if under_way and rollout is not None else None
    return ModelRow(
        status=model,
        traffic=figures,
        spark=sparkline([minute.requests for minute in figures.minutes]),
        candidate=rollout.candidate if under_way and rollout is not None else None,
        verdict=str(decision.action) if decision else "",
        last=last,
    )


def model_screen(
    model: ModelStatus, traffic: ModelTraffic, rollout: RolloutReport | None
) -> Screen:
    """Show one model with its versions."""
    return {
        "model": model,
        "traffic": traffic,
        "by_version": {each.version: each for each in traffic.versions},
        "requests": plot([("requests", [minute.requests for minute in traffic.minutes])]),
        "latency": plot(
            [
                ("p50", [minute.p50_ms for minute in traffic.minutes]),
                ("p99", [minute.p99_ms for minute in traffic.minutes]),
            ]
        ),
        "rollout": rollout,
    }


def rollout_screen(rollout: RolloutReport, traffic: ModelTraffic, step: str) -> Screen:
    """Show one rollout. ``step``: as the gateway logs the present step."""
    gates = rollout.decision.gates if rollout.decision else ()
    return {
        "rollout": rollout,
        "actual": _actual_weight(rollout, traffic, step),
        "gates": [GateRow(gate, _seconds(gate, rollout.windows)) for gate in gates],
        "evidence": _evidence(gates, rollout.windows),
        "latency": _latency(rollout.windows),
    }


def _actual_weight(rollout: RolloutReport, traffic: ModelTraffic, step: str) -> float | None:
    """Return the candidate's share of what this step's weights routed lately, per cent."""
    counts = traffic.steps.get(step, {})
    total = sum(counts.values())
    return 100 * counts.get(rollout.candidate, 0) / total if total else None


def _seconds(gate: GateResult, windows: Sequence[MetricWindow]) -> float | None:
    if gate.need is None or not windows:
        return None
    rest = gate.need.minimum - gate.need.seen
    recent = windows[-_RATE_WINDOWS:]
    duration_s = recent[-1].start - recent[0].start + WINDOW_S
    count = sum(_of_kind(gate.need.kind, window) for window in recent)
    return rest * duration_s / count if rest > 0 and count else None


def _of_kind(kind: str, window: MetricWindow) -> int:
    """Return how much evidence of a kind a window brought."""
    match kind:
        case "candidate":
            return window.candidate.requests
        case "stable":
            return window.stable.requests
        case "pairs":
            return window.pairs
    return window.candidate.requests + window.stable.requests


def _evidence(gates: Sequence[GateResult], windows: Sequence[MetricWindow]) -> Mapping[str, Plot]:
    """Return gate -> its e-value over time, and the threshold."""
    return {
        gate.gate: log_plot(
            [(gate.gate, [window.e_values.get(gate.gate) for window in windows])], gate.threshold
        )
        for gate in gates
    }


def _latency(windows: Sequence[MetricWindow]) -> Plot:
    return plot(
        [
            ("candidate", [window.candidate.p99_ms for window in windows]),
            ("stable", [window.stable.p99_ms for window in windows]),
        ]
    )
