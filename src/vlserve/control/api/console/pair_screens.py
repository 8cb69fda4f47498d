"""What the page Disagreements shows, from the pairs that differ. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from vlserve.control.api.console.rendering import shown
from vlserve.control.api.console.screens import Screen
from vlserve.control.captures import InputSummary
from vlserve.control.domain import Mark
from vlserve.control.rollouts.pair_log import DifferingPair, Kind

MOST_SHOWN = 50
MOST_CHANGES = 30
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Filter:
    """Which pairs are shown. ``label``: one of the two best labels; empty: any. ``kind``: empty:
    any."""

    label: str = ""
    kind: str = ""

    def takes(self, pair: DifferingPair) -> bool:
        labels = (pair.stable_label, pair.candidate_label)
        names = (*labels, *map(shown, labels))  # a form sends what the page shows
        return (not self.label or self.label in names) and self.kind in ("", pair.kind)


@dataclass(frozen=True)
class Change:
    """How often stable's best label became the candidate's."""

    stable: str
    candidate: str
    pairs: int


@dataclass(frozen=True)
class PairRow:
    """One pair, what was said of it, and what was kept of its input."""

    pair: DifferingPair
    mark: Mark | None
    kept: InputSummary | None = None


def pairs_screen(
    name: str,
    pairs: Sequence[DifferingPair],
    marks: Sequence[Mark],
    choice: Filter,
    summary_of: Callable[[str], InputSummary | None],
) -> Screen:
    """Show the pairs that ``choice`` takes, and how often which label became which.

    Args:
        summary_of: request id -> what was kept of its input.
    """
    matches = [pair for pair in pairs if choice.takes(pair)]
    by_pair = {(mark.request_id, mark.stable, mark.candidate): mark for mark in marks}
    rows = [
        PairRow(
            pair,
            by_pair.get((pair.request_id, pair.stable, pair.candidate)),
            summary_of(pair.request_id),
        )
        for pair in matches[:MOST_SHOWN]
    ]
    return {
        "name": name,
        "chosen": choice,
        "kinds": KINDS,
        "labels": sorted({label for pair in pairs for label in _labels(pair)}),
        "changes": _changes(matches),
        "found": len(matches),
        "rows": rows,
        "kept": any(row.kept for row in rows),
        "marked": len(marks),
    }


def _labels(pair: DifferingPair) -> set[str]:
    return {pair.stable_label, pair.candidate_label} - {""}


def _changes(pairs: Sequence[DifferingPair]) -> list[Change]:
    counts = Counter((pair.stable_label, pair.candidate_label) for pair in pairs)
    return [Change(*labels, number) for labels, number in counts.most_common(MOST_CHANGES)]
