"""Compare what two sides said to the same requests. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALONE, TOGETHER = 1e-6, 1e-5
"""Most that two scores of one answer may differ by: of requests that ran alone, and of those that
shared batches, whose sums are taken in another order."""
MAX_EXAMPLES = 10
"""Differences that a comparison names."""


@dataclass(frozen=True)
class Response:
    """What a client reads: the status, and the body without what differs by itself."""

    status: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """How an answer differs from another one."""

    where: str
    """The first place that is not the same, with both values; empty where only scores differ."""
    score: float
    """The largest difference of two scores."""


@dataclass(frozen=True)
class Comparison:
    """One side against another, over all requests."""

    side: str
    against: str
    requests: int
    statuses: int
    """Answers with another status."""
    others: int
    """Answers of the same status with another label, text or field."""
    largest_score: float
    """The largest difference of two scores, of the answers that are otherwise the same."""
    limit: float | None
    """Most that it may be; None: it is a figure, and labels may follow it."""
    examples: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether both said the same."""
        if self.statuses or not self.requests:
            return False
        return self.limit is None or (not self.others and self.largest_score <= self.limit)


def difference(reference: Response, answer: Response) -> Difference:
    """Return how ``answer`` differs from ``reference``.

    Every float is a score; entries of a list of objects may change places, as scores that are
    nearly equal do.
    """
    if reference.status != answer.status:
        return Difference(f"status {answer.status}, not {reference.status}", 0.0)
    return _walk(reference.body, answer.body, "")


def compare(
    side: str,
    answers: Mapping[str, Response],
    against: str,
    references: Mapping[str, Response],
    limit: float | None,
) -> Comparison:
    """Compare the answers of two sides, by the name of each request.

    Args:
        side: Name of the one that is judged.
        answers: Its answers, of the same requests as ``references``.
        against: Name of the other.
        references: The other's answers.
        limit: Most that a score may differ by.
    """
    differences = {
        name: difference(reference, answers[name]) for name, reference in references.items()
    }
    statuses = [
        name for name, reference in references.items() if reference.status != answers[name].status
    ]
    others = [name for name, each in differences.items() if each.where and name not in statuses]
    examples = [f"{name}: {differences[name].where}" for name in (*statuses, *others)]
    return Comparison(
        side=side,
        against=against,
        requests=len(references),
        statuses=len(statuses),
        others=len(others),
        largest_score=max(
            (each.score for each in differences.values() if not each.where), default=0.0
        ),
        limit=limit,
        examples=tuple(examples[:MAX_EXAMPLES]),
    )


def _walk(reference: Any, answer: Any, where: str) -> Difference:
    if isinstance(reference, Mapping) and isinstance(answer, Mapping):
        if reference.keys() != answer.keys():
            return Difference(f"{where} has {sorted(answer)}, not {sorted(reference)}".strip(), 0.0)
        return _worst(
            [_walk(reference[name], answer[name], f"{where}.{name}") for name in reference]
        )
    if isinstance(reference, list) and isinstance(answer, list) and len(reference) == len(answer):
        pairs = zip(reference, _in_order_of(reference, answer), strict=True)
        return _worst([_walk(*pair, f"{where}[{at}]") for at, pair in enumerate(pairs)])
    if _is_number(reference) and _is_number(answer) and float in (type(reference), type(answer)):
        return Difference("", abs(reference - answer))
    same = type(reference) is type(answer) and reference == answer
    return Difference("" if same else f"{where} is {_short(answer)}, not {_short(reference)}", 0.0)


def _in_order_of(reference: Sequence[Any], answer: Sequence[Any]) -> Sequence[Any]:
    """Return ``answer`` in the order of ``reference``, where both hold the same objects."""
    places = {_label(entry): at for at, entry in enumerate(reference)}
    labels = [_label(entry) for entry in answer]
    objects = all(isinstance(entry, Mapping) for entry in (*reference, *answer))
    if not objects or len(places) != len(reference) or set(labels) != set(places):
        return answer
    return sorted(answer, key=lambda entry: places[_label(entry)])


def _label(entry: Any) -> str:
    """Return an object without its scores."""
    if not isinstance(entry, Mapping):
        return ""
    fields = {name: value for name, value in entry.items() if not isinstance(value, float)}
    return json.dumps(fields, sort_keys=True)


def _worst(differences: Sequence[Difference]) -> Difference:
    where = next((each.where for each in differences if each.where), "")
    return Difference(where, max((each.score for each in differences), default=0.0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
