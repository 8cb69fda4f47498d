"""Compare what two sides said to the same requests. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALONE, TOGETHER = 1e-6, 1e-5
"""Most that two scores of one answer may differ by: of requests that ran alone, and of those that
shared batches, whose sums are taken in another order."""
SHOWN = 10
"""Differences that a comparison names."""


@dataclass(frozen=True)
class Said:
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


def difference(expected: Said, got: Said) -> Difference:
    """Return how ``got`` differs from ``expected``. Every float is a score; entries of a list of
    objects may change places, as scores that are nearly equal do."""
    if expected.status != got.status:
        return Difference(f"status {got.status}, not {expected.status}", 0.0)
    return _walk(expected.body, got.body, "")


def compare(
    side: str,
    got: Mapping[str, Said],
    against: str,
    expected: Mapping[str, Said],
    limit: float | None,
) -> Comparison:
    """Compare the answers of two sides, by the name of each request.

    Args:
        side: Name of the one that is judged.
        got: Its answers, of the same requests as ``expected``.
        against: Name of the other.
        expected: Its answers.
        limit: Most that a score may differ by.
    """
    found = {name: difference(said, got[name]) for name, said in expected.items()}
    statuses = [name for name, said in expected.items() if said.status != got[name].status]
    others = [name for name, each in found.items() if each.where and name not in statuses]
    examples = [f"{name}: {found[name].where}" for name in (*statuses, *others)]
    return Comparison(
        side=side,
        against=against,
        requests=len(expected),
        statuses=len(statuses),
        others=len(others),
        largest_score=max((each.score for each in found.values() if not each.where), default=0.0),
        limit=limit,
        examples=tuple(examples[:SHOWN]),
    )


def _walk(expected: Any, got: Any, where: str) -> Difference:
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if expected.keys() != got.keys():
            return Difference(f"{where} has {sorted(got)}, not {sorted(expected)}".strip(), 0.0)
        return _worst([_walk(expected[name], got[name], f"{where}.{name}") for name in expected])
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = zip(expected, _in_order_of(expected, got), strict=True)
        return _worst([_walk(*pair, f"{where}[{at}]") for at, pair in enumerate(pairs)])
    if _is_number(expected) and _is_number(got) and float in (type(expected), type(got)):
        return Difference("", abs(expected - got))
    same = type(expected) is type(got) and expected == got
    return Difference("" if same else f"{where} is {_short(got)}, not {_short(expected)}", 0.0)


def _in_order_of(expected: Sequence[Any], got: Sequence[Any]) -> Sequence[Any]:
    """Return ``got`` in the order of ``expected``, where both hold the same objects."""
    places = {_label(entry): at for at, entry in enumerate(expected)}
    labels = [_label(entry) for entry in got]
    objects = all(isinstance(entry, Mapping) for entry in (*expected, *got))
    if not objects or len(places) != len(expected) or set(labels) != set(places):
        return got
    return sorted(got, key=lambda entry: places[_label(entry)])


def _label(entry: Any) -> str:
    """Return an object without its scores."""
    if not isinstance(entry, Mapping):
        return ""
    kept = {name: value for name, value in entry.items() if not isinstance(value, float)}
    return json.dumps(kept, sort_keys=True)


def _worst(found: Sequence[Difference]) -> Difference:
    where = next((each.where for each in found if each.where), "")
    return Difference(where, max((each.score for each in found), default=0.0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
