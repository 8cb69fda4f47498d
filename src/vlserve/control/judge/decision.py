"""The decision that follows from the evidence so far: advance, hold or rollback. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from vlserve.control.judge.evidence import Standing
from vlserve.control.judge.gates import GateResult, Verdict, gate_results
from vlserve.control.judge.state import JudgeState

CHOSEN_KEYS = (
    "requests or log lines get lost, or callers choose their sticky keys, so a person decides: "
    "`vlserve abort` takes the candidate back, `vlserve promote` gives it all traffic"
)
"""Why an alarm of the sample-ratio gate alone holds, and what ends it."""


class Action(StrEnum):
    ADVANCE = "advance"  # to next_weight; at the last step: the candidate becomes stable
    HOLD = "hold"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Decision:
    """What to do now, why, and the figures of every gate behind it."""

    action: Action
    reason: str
    step: int
    weight: int
    next_weight: int | None
    gates: tuple[GateResult, ...]

    def detail(self) -> Mapping[str, Any]:
        """Return the decision as plain values, for the ledger."""
        return asdict(self)


def decide(state: JudgeState, standing: Standing) -> Decision:
    """Decide what to do with the rollout now. How often it is called costs no certainty.

    Roll back on an alarm of any gate or an unhealthy candidate, but only onto a healthy stable;
    hold and ask a person on an alarm of the sample-ratio gate alone; advance when no gate alarms or
    waits, the hold is over and both versions are healthy; else hold.
    """
    gates = gate_results(state)
    objections = list(_reasons_to_roll_back(gates, standing))
    reasons = list(_reasons_to_wait(state, gates, standing))
    if _callers_can_bring_about(gates, standing):
        action = Action.HOLD
        reason = f"{'; '.join(objections)}; {CHOSEN_KEYS}"
    elif objections and standing.stable_healthy is not True:
        action = Action.HOLD
        reason = f"stable is {_health(standing.stable_healthy)}, so no rollback onto it, though "
        reason += "; ".join(objections)
    elif objections:
        action, reason = Action.ROLLBACK, "; ".join(objections)
    elif reasons:
        action, reason = Action.HOLD, "; ".join(reasons)
    else:
        action = Action.ADVANCE
        reason = f"every gate is clear at {state.weight} %, held for {standing.elapsed_s:.0f} s"
    return Decision(action, reason, state.step, state.weight, state.next_weight, gates)


def objected(state: JudgeState, reason: str) -> Decision:
    """Return the decision to take the candidate back for a reason that is no gate's."""
    gates = gate_results(state)
    return Decision(Action.ROLLBACK, reason, state.step, state.weight, state.next_weight, gates)


def _callers_can_bring_about(gates: tuple[GateResult, ...], standing: Standing) -> bool:
    """Return whether all that speaks against the candidate is who came to it. Callers who learn
    which of their sticky keys reach it can send those alone at the next step: were that a reason to
    take it back, any caller could veto any release."""
    alarms = {gate.gate for gate in gates if gate.verdict is Verdict.ALARM}
    return alarms == {"sample_ratio"} and standing.candidate_healthy is not False


def _reasons_to_roll_back(gates: tuple[GateResult, ...], standing: Standing) -> Iterator[str]:
    for gate in gates:
        if gate.verdict is Verdict.ALARM:
            yield (
                f"{gate.gate}: {gate.summary} (e-value {gate.peak_e_value:.3g}, "
                f"alarm at {gate.threshold:.3g})"
            )
    if standing.candidate_healthy is False:
        yield "the candidate is not healthy"


def _reasons_to_wait(
    state: JudgeState, gates: tuple[GateResult, ...], standing: Standing
) -> Iterator[str]:
    if standing.stable_healthy is not True:
        yield f"stable is {_health(standing.stable_healthy)}"
    if standing.candidate_healthy is not True:
        yield f"the candidate is {_health(standing.candidate_healthy)}"
    if standing.elapsed_s < state.policy.hold_s:
        yield f"held for {standing.elapsed_s:.0f} of {state.policy.hold_s:.0f} s"
    for gate in gates:
        if gate.verdict is Verdict.WAITING:
            yield f"{gate.gate} waits for {gate.waits_for}"


def _health(healthy: bool | None) -> str:
    if healthy is None:
        return "of unknown health"
    return "healthy" if healthy else "not healthy"
