"""A rollout in words: where it stands, what it waits for, how far that is, and what ends it."""

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView

_WAITS_FOR = " waits for "


def place(view: RolloutView) -> str:
    """Return where a rollout stands, or how it ended."""
    match view.status:
        case RolloutStatus.PROMOTED:
            return f"{view.model} {view.candidate} has all traffic, {view.stable} stays loaded"
        case RolloutStatus.ROLLED_BACK | RolloutStatus.ABORTED:
            return f"{view.model} is back on {view.stable}; {view.candidate} was taken back"
    copies = f"copies of {view.shadow_percent} % of requests"
    share = copies if view.shadow_percent else f"{view.weight} % of traffic"
    suffix = ", paused" if view.status is RolloutStatus.PAUSED else ""
    step = f"step {view.step + 1} of {len(view.weights)}"
    return f"{view.model} {view.candidate} gets {share} ({step}{suffix})"


def waiting(view: RolloutView) -> str:
    """Return what a step waits for, with the counts so far, and what ends it."""
    if view.state_error:
        return view.state_error
    if view.decision is None:
        return "nothing is judged yet"
    others: list[str] = []
    gates: dict[str, list[str]] = {}
    for part in view.decision.reason.split("; "):
        gate, waits, what = part.partition(_WAITS_FOR)
        if waits:
            gates.setdefault(what, []).append(gate)
        else:
            others.append(part)
    if not gates:
        return "; ".join(others)
    needs = [f"{what} ({', '.join(names)})" for what, names in gates.items()]
    nothing = ["no request has been counted yet"] if _counted(view) == 0 else []
    ends = (
        f"it goes on with that traffic; `vlserve promote {view.model}` and "
        f"`vlserve abort {view.model}` end it now"
    )
    return "; ".join([*others, *nothing, f"waits for {', '.join(needs)}", ends])


def waits_for(view: RolloutView) -> str:
    """Return the gates that a step waits for, without their figures, which change all the time."""
    if view.state_error:
        return view.state_error
    if view.decision is None:
        return ""
    return ", ".join(gate.gate for gate in view.decision.gates if gate.verdict == "waiting")


def why_back(view: RolloutView) -> str:
    """Return why a candidate was taken back; empty for one that was not."""
    if view.status is RolloutStatus.ABORTED:
        return "by hand, with `vlserve abort` or `vlserve rollback`"
    if view.status is RolloutStatus.ROLLED_BACK and view.decision is not None:
        return view.decision.reason
    return ""


def _counted(view: RolloutView) -> float | None:
    """Return the requests that count in this step; None where no gate says."""
    assert view.decision is not None
    for gate in view.decision.gates:
        if "step_candidate" in gate.figures:
            return gate.figures["step_candidate"] + gate.figures["step_stable"]
    return None
