"""The evidence that the judge gets: outcomes of requests, shadow pairs, health of the versions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlserve.errors import ControlError


class EvidenceInvalid(ControlError):
    """An observation that cannot be: a negative latency, a score distance beyond 0 and 1."""

    code = "evidence_invalid"


@dataclass(frozen=True)
class Outcome:
    """One request that the gateway's weights routed, in the order of the gateway's log.

    Not evidence: requests that asked for a version (X-Model-Version, explicit path), and mirrored
    copies.
    """

    candidate: bool
    """Answered by the candidate; else by stable."""
    failed: bool
    """5xx, reset, or no answer."""
    latency_ms: float
    """As the gateway measured it; read only if the request did not fail."""
    caller: str | None = None
    """The sticky key; None: routed at random, on its own."""
    tag: str | None = None
    """The top tag of the answer, where the task has tags and the answer log has the request."""
    refused: bool = False
    """The client's own fault (4xx): it counts for the sample ratio, and for nothing else. Left out
    there, a version that accepts what the other refuses would seem to get more requests."""
    other_tags: tuple[str, ...] = ()
    """Of a request of several items (V2): the top tags of those after the first."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise EvidenceInvalid(
                f"latency_ms is {self.latency_ms}: expected a number of at least 0"
            )

    @property
    def tags(self) -> tuple[str, ...]:
        """The top tags of all items."""
        return self.other_tags if self.tag is None else (self.tag, *self.other_tags)


@dataclass(frozen=True)
class ShadowPair:
    """One mirrored request: stable's answer and the candidate's, joined by request id.

    A request that stable answered and the candidate could not is a pair that does not agree, at
    distance 1. One whose copy never reached the candidate is no pair.
    """

    agree: bool
    """Both name the same top tag."""
    score_distance: float
    """|score by stable - score by candidate| of stable's top tag, in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.score_distance <= 1:
            raise EvidenceInvalid(
                f"score_distance is {self.score_distance}: expected a number from 0 to 1"
            )


@dataclass(frozen=True)
class Batch:
    """The evidence logged since the last batch; it may have any size, also none."""

    outcomes: Sequence[Outcome] = ()
    pairs: Sequence[ShadowPair] = ()


@dataclass(frozen=True)
class Standing:
    """The time in the step and the health of both versions. None: not known, which counts as not
    healthy."""

    elapsed_s: float
    """Since the step's weight came into force, pauses not counted."""
    stable_healthy: bool | None
    candidate_healthy: bool | None
