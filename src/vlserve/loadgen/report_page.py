"""What we put at the top of Locust's HTML report, which knows no verdict."""

from html import escape
from pathlib import Path


def add_section(report: Path, section: str) -> None:
    """Write ``section``, HTML, at the top of the page ``report``."""
    page = report.read_text(encoding="utf-8")
    head, body, rest = page.partition("<body>")
    report.write_text(f"{head}{body}{section}{rest}", encoding="utf-8")


def verdict_section(passed: bool, verdict: str) -> str:
    """Return the verdict on a run as HTML."""
    word = "passed" if passed else "FAILED"
    return (
        '<section style="font-family: sans-serif; margin: 1em">'
        f"<h1>{word}</h1><p>{escape(verdict)}</p>"
        "<p>The figures below are Locust's: they count the warm-up in, which the verdict does not."
        "</p></section>"
    )
