"""How commands list the lines of a data file that they left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlserve.cli.output import print_line

if TYPE_CHECKING:
    from vlserve.training.json_lines import BadKind, BadLine


def print_bad_lines(bad_lines: "Sequence[BadLine]") -> None:
    """Print five lines of each kind with their reasons, and how many there are."""
    from vlserve.training.json_lines import by_kind

    print_bad_kinds(by_kind(bad_lines), len(bad_lines))


def print_bad_kinds(kinds: "Sequence[BadKind]", count: int) -> None:
    """Print the bad lines that are shown of each kind, and how many there are in all."""
    for kind in kinds:
        for bad in kind.shown:
            print_line(f"left out: {bad.file}, line {bad.line}: {bad.reason}")
        if kind.more:
            print_line(f"left out: {kind.more} more like these")
    if count:
        print_line(f"{count} lines left out")
