"""The order of test files, and what files have in common that takes long to make."""

from functools import cache
from pathlib import Path

LONGEST = {
    "archives: Archives": "archives",
    "checkout: Checkout": "documents",
    "stack: RunningStack": "stack",
}
"""Parameters that ask for something that takes long to make -> what their files have in common.
Those files come first, in this order, so that no process has them left when the others are done."""


@cache
def shared(file: Path) -> str | None:
    """Return the first of LONGEST that a file of tests asks for."""
    text = file.read_text(encoding="utf-8")
    return next((name for parameter, name in LONGEST.items() if parameter in text), None)
