"""The six releases of a drill: what is wrong with each, and what must become of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.drill.twin import Fault
from vlserve.loadgen.caller_record import Call

PROMOTED, ROLLED_BACK, REFUSED = "promoted", "rolled_back", "refused"
UNDECIDED = "undecided"
"""The judge had not decided when its time was over, and a person would be asked."""
_IN_SHADOW = frozenset({"agreement", "score_distance"})
_LATENCY = frozenset({"latency_p50", "latency_p99"})


@dataclass(frozen=True)
class Case:
    """``gates``: those of which at least one must be the reason of a rollback; empty: any.
    ``spoilt``: a byte of the archive is not what was packed. ``shadow``: the release begins with
    one, so that what fails there reaches no client. ``may_lose``: with one engine instance,
    requests may be lost, because the worker that had them is gone."""

    name: str
    fault: Fault
    expected: str
    gates: frozenset[str] = frozenset()
    spoilt: bool = False
    shadow: bool = True
    may_lose: bool = False


def cases(latency_s: float) -> tuple[Case, ...]:
    """For a model that takes ``latency_s`` for a request."""
    delay_ms = max(40.0, 2000 * latency_s)
    return (
        Case("good", Fault(), PROMOTED),
        Case("slow", Fault("slow", delay_ms=delay_ms), ROLLED_BACK, _LATENCY),
        Case("failing", Fault("fails", share=0.5), ROLLED_BACK, _IN_SHADOW | {"errors"}),
        Case("different", Fault("differs"), ROLLED_BACK, _IN_SHADOW),
        Case("crashing", Fault("crashes", share=0.08), ROLLED_BACK, shadow=False, may_lose=True),
        Case("bad archive", Fault(), REFUSED, spoilt=True),
    )


@dataclass(frozen=True)
class Policy:
    """The drill's own: everything in minutes. Callers have no keys, so each request is a draw."""

    weights: tuple[int, ...] = (20, 50, 100)
    hold_s: float = 4.0
    shadow_percent: int = 50
    minimum: int = 120
    pairs: int = 60
    keep_s: float = 120.0

    def changes(self, shadow: bool) -> Mapping[str, Any]:
        """Entries of rollout.yaml."""
        each = dict.fromkeys(("candidate", "stable", "units"), self.minimum)
        return {
            "weights": list(self.weights),
            "hold_s": self.hold_s,
            "shadow_percent": self.shadow_percent if shadow else 0,
            "keep_s": self.keep_s,
            "minimum": each | {"pairs": self.pairs},
            "unit": "request",
            "recovery": "resume",
        }


@dataclass(frozen=True)
class Decided:
    """What became of one case. ``began``: Unix time, s. ``after_s``: from the start of the release,
    or of the registration that was refused."""

    case: Case
    version: int
    began: float
    decision: str
    gates: tuple[str, ...]
    why: str
    after_s: float


@dataclass(frozen=True)
class CaseResult:
    """``requests``: those that began in this case; ``lost``: those that got no 2xx."""

    name: str
    version: int
    expected: str
    decision: str
    gates: tuple[str, ...]
    why: str
    after_s: float
    requests: int
    lost: int
    passed: bool


def decision_of(view: RolloutView) -> tuple[str, tuple[str, ...], str]:
    """The decision, the gates that alarmed, and the judge's words, of a release that has ended, or
    whose time is over."""
    judged = view.decision
    alarms = tuple(g.gate for g in judged.gates if g.verdict == "alarm") if judged else ()
    decision = {
        RolloutStatus.PROMOTED: PROMOTED,
        RolloutStatus.ROLLED_BACK: ROLLED_BACK,
    }.get(view.status, UNDECIDED)
    return decision, alarms, judged.reason if judged else "no decision"


def judge_cases(
    decided: Sequence[Decided], calls: Sequence[Call], instances: int
) -> tuple[CaseResult, ...]:
    """Each case against what was expected of it, with the requests that began until the next."""
    ends = [after.began for after in decided[1:]] + [float("inf")]
    return tuple(
        _judge(each, [c for c in calls if each.began <= c.started < end], instances)
        for each, end in zip(decided, ends, strict=True)
    )


def _judge(decided: Decided, calls: Sequence[Call], instances: int) -> CaseResult:
    case = decided.case
    lost = sum(call.failure is not None for call in calls)
    found = not case.gates or bool(case.gates & set(decided.gates))
    right = decided.decision == case.expected and found
    whole = lost == 0 or (case.may_lose and instances == 1)
    return CaseResult(
        name=case.name,
        version=decided.version,
        expected=case.expected,
        decision=decided.decision,
        gates=decided.gates,
        why=decided.why,
        after_s=round(decided.after_s, 1),
        requests=len(calls),
        lost=lost,
        passed=right and whole and bool(calls),
    )
