"""Log lines -> the evidence that the judge gets. Pure.

The gateway's log has one line a request, written when it ends, with the step of the release whose
weights routed it; a request that asked for a version has no step. The log of copies has one line a
copy that reached the candidate. The handlers' log has what each version answered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol

from vlserve.control.gateway.log_lines import AccessLine, ShadowLine
from vlserve.control.judge import Outcome, ShadowPair
from vlserve.control.rollouts.answer_log import LoggedAnswer
from vlserve_worker.v2.item_ids import read_item_id

PATIENCE_S = 120.0
"""How long a copy waits for the other answer; longer than any request takes."""
_OVERLOAD = "overload"  # Envoy's detail of a request that it had no memory for
_LEFT_SOON_MS = 1000.0
"""A client that leaves sooner says nothing against a version: any caller can hang up at once."""
_OVERFLOW = "UO"  # Envoy's flag for a request that it did not even try to send


@dataclass(frozen=True)
class AnsweredCopy:
    """A copy with both answers. ``candidate``: None where it could not answer."""

    request_id: str
    stable: LoggedAnswer
    candidate: LoggedAnswer | None


class Answers(Protocol):
    """What was answered, as `AnswerLog` has it."""

    def of(self, request_id: str, version: int) -> LoggedAnswer | None:
        """Return the answer of a version; None while it is not known."""
        ...

    def items_of(self, request_id: str) -> Sequence[str]:
        """Return the ids of the answers to a request, of which it may have several (V2)."""
        ...


@dataclass(frozen=True)
class Pair:
    """The two versions of one comparison."""

    candidate: int
    stable: int


@dataclass(frozen=True)
class Copy:
    """A copy of a request that the candidate got, until both answers are logged."""

    request_id: str
    status: int
    seen_at: float


def outcome(line: AccessLine, versions: Pair, answers: Answers) -> Outcome | None:
    """Return the outcome that a line of the gateway's log tells; None if another version got it, or
    the gateway would have sent it to none: without a key nobody has a say in a release.

    A request that was answered only at another try has failed: its client did not notice, but the
    version lost it once. What callers can bring about by themselves counts for the split alone, or
    is taken out: how slowly they send, and that they leave before they sent all or had to wait.
    """
    status, version = line.status or 0, line.number
    if version not in (versions.candidate, versions.stable):
        return None
    if status == HTTPStatus.UNAUTHORIZED or line.details == _OVERLOAD:
        return None
    refused = 400 <= status < 500 or (line.client_left and not line.upstream)
    left_soon = line.client_left and line.waited_ms < _LEFT_SOON_MS
    answered_once = 200 <= status < 400 and (line.tries or 1) == 1
    items = answers.items_of(str(line.request_id)) if answered_once else ()
    replies = [each for item in items if (each := answers.of(item, version)) is not None]
    # With `partial` (V2) a request is answered although items of it are not.
    lost = any(each.lost for each in replies)
    refused = refused or (bool(replies) and not lost and all(each.failed for each in replies))
    failed = lost or not (refused or left_soon or answered_once)
    labels = tuple(each.label for each in replies if each.label is not None)
    return Outcome(
        candidate=version == versions.candidate,
        failed=failed,
        refused=refused,
        latency_ms=line.waited_ms,
        caller=line.caller or None,
        tag=labels[0] if labels else None,
        other_tags=labels[1:],
    )


def copies(lines: Iterable[ShadowLine], now: float) -> list[Copy]:
    """Return the copies in lines of the log of copies, without those that were not even sent."""
    return [
        Copy(str(line.request_id), line.status or 0, now)
        for line in lines
        if _OVERFLOW not in (line.flags or "").split(",")
    ]


def join(
    queue: Sequence[Copy], versions: Pair, answers: Answers, now: float
) -> tuple[list[AnsweredCopy], list[Copy]]:
    """Return the copies that both versions have answered, and those that still wait. A request
    that stable could not answer is neither. Of a request of several items (V2), each is a copy."""
    pairs, rest = [], []
    copies = (
        replace(copy, request_id=item)
        for copy in queue
        for item in answers.items_of(copy.request_id)
    )
    for copy in copies:
        is_item = read_item_id(copy.request_id) is not None
        stable = answers.of(copy.request_id, versions.stable)
        candidate = answers.of(copy.request_id, versions.candidate)
        if stable is None or (candidate is None and _may_still_come(copy, is_item)):
            if 0 <= now - copy.seen_at < PATIENCE_S:  # below: the clock stepped back
                rest.append(copy)
        elif not stable.failed:
            answer = candidate if copy.status == HTTPStatus.OK or is_item else None
            pairs.append(AnsweredCopy(copy.request_id, stable, answer))
    return pairs, rest


def _may_still_come(copy: Copy, is_item: bool) -> bool:
    """Return whether the candidate's answer is to be waited for. An item may have one although
    another failed their request."""
    return copy.status == HTTPStatus.OK or (is_item and copy.status < 500)


def compare(stable: LoggedAnswer, candidate: LoggedAnswer | None) -> ShadowPair:
    """Compare two answers to one request; None: the candidate could not answer what stable could.

    The distance is that of the scores of stable's best label, 0 where the candidate does not name
    it.
    """
    if candidate is None or candidate.failed:
        return ShadowPair(agree=False, score_distance=1.0)
    if stable.label is None:
        return ShadowPair(agree=True, score_distance=0.0)
    distance = abs(stable.scores[stable.label] - candidate.scores.get(stable.label, 0.0))
    return ShadowPair(agree=candidate.label == stable.label, score_distance=min(1.0, distance))
