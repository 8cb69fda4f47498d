"""The order of test files, and what files have in common that takes long to make."""

import re
from functools import cache
from pathlib import Path

STACK = "stack"
ARCHIVES = "archives"
LONGEST = {
    "archives: Archives": ARCHIVES,
    "converter: Converter": ARCHIVES,
    "checkout: Checkout": "documents",
    "run_on_the_stack: Run": "benchmarks",
    "stack: RunningStack": STACK,
}
"""Parameters that ask for something that takes long to make -> what their files have in common.
Those files come first, in this order, so that no process has them left when the others are done."""


@cache
def shared(file: Path) -> str | None:
    """Return the first of LONGEST that a file of tests asks for."""
    return next(iter(_all_shared(file)), None)


@cache
def shares_stack(file: Path) -> bool:
    """Return whether a file of tests asks for the stack that files share."""
    return STACK in _all_shared(file)


def _all_shared(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return [name for pattern, name in LONGEST.items() if re.search(rf"\b{pattern}", text)]
