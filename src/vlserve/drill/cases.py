"""The six releases of a drill: the fault of each, and the decision that is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlserve.control.domain import RolloutStatus
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.drill.twin import Fault
from vlserve.loadgen.request_record import RequestRecord

PROMOTED, ROLLED_BACK, REFUSED = "promoted", "rolled_back", "refused"
UNDECIDED = "undecided"
"""The time was over before the judge had decided."""
_IN_SHADOW = frozenset({"agreement", "score_distance"})
_LATENCY = frozenset({"latency_p50", "latency_p99"})


@dataclass(frozen=True)
class Case:
    """One release, and the decision that is right."""

    name: str
    fault: Fault
    expected: str
    gates: frozenset[str] = frozenset()
    """At least one of these must be the reason of the rollback; empty: any gate may be."""
    spoilt: bool = False
    """Whether a byte of the archive is changed after it was packed."""
    shadow: bool = True
    """Whether the release begins with a shadow, so that what fails there reaches no client."""
    may_lose: bool = False
    """Whether requests may be lost with one engine instance: they die with its worker."""


def cases(latency_s: float) -> tuple[Case, ...]:
    """Return the cases for a model that takes ``latency_s`` for a request."""
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
    """The drill's release policy: all in minutes. Requests have no sticky key: each is a draw."""

    weights: tuple[int, ...] = (20, 50, 100)
    hold_s: float = 4.0
    shadow_percent: int = 50
    minimum: int = 120
    pairs: int = 60
    keep_s: float = 120.0

    def changes(self, shadow: bool) -> Mapping[str, Any]:
        """Return the entries of rollout.yaml that differ."""
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
class CaseDecision:
    """The decision on one case."""

    case: Case
    version: int
    began: float
    """Unix time, s."""
    decision: str
    gates: tuple[str, ...]
    """The gates that raised an alarm."""
    why: str
    after_s: float
    """From the start of the release, or of the registration that was refused."""


@dataclass(frozen=True)
class CaseResult:
    """One case, judged. Field names are result.json's."""

    name: str
    version: int
    expected: str
    decision: str
    gates: tuple[str, ...]
    why: str
    after_s: float
    requests: int
    """Requests that were sent during this case."""
    lost: int
    """Those of them that failed."""
    passed: bool


def decision_of(view: RolloutView) -> tuple[str, tuple[str, ...], str]:
    """Return the decision, the gates that raised an alarm, and the judge's reason.

    The release has ended, or its time is over.
    """
    last = view.decision
    alarms = tuple(g.gate for g in last.gates if g.verdict == "alarm") if last else ()
    decision = {
        RolloutStatus.PROMOTED: PROMOTED,
        RolloutStatus.ROLLED_BACK: ROLLED_BACK,
    }.get(view.status, UNDECIDED)
    return decision, alarms, last.reason if last else "no decision"


def judge_cases(
    decisions: Sequence[CaseDecision], requests: Sequence[RequestRecord], instances: int
) -> tuple[CaseResult, ...]:
    """Judge each case against the right decision, with the requests that were sent during it.

    Args:
        decisions: In the order of the cases; a case lasts until the next one begins.
        requests: Of the whole drill.
        instances: How many engine instances there are.
    """
    ends = [later.began for later in decisions[1:]] + [float("inf")]
    return tuple(
        _judge(decision, [r for r in requests if decision.began <= r.sent_at < end], instances)
        for decision, end in zip(decisions, ends, strict=True)
    )


def _judge(outcome: CaseDecision, requests: Sequence[RequestRecord], instances: int) -> CaseResult:
    case = outcome.case
    losses = sum(request.failure is not None for request in requests)
    right_gate = not case.gates or bool(case.gates & set(outcome.gates))
    right = outcome.decision == case.expected and right_gate
    lossless = losses == 0 or (case.may_lose and instances == 1)
    return CaseResult(
        name=case.name,
        version=outcome.version,
        expected=case.expected,
        decision=outcome.decision,
        gates=outcome.gates,
        why=outcome.why,
        after_s=round(outcome.after_s, 1),
        requests=len(requests),
        lost=losses,
        passed=right and lossless and bool(requests),
    )
