"""What was found, as a section of Locust's own HTML report."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlserve.drill.checked_release import CheckedRelease

Row = Sequence[object]

_STYLE = (
    "font-family: sans-serif; color: #222; background: #fff; padding: 1rem 2rem; "
    "border-bottom: 1px solid #999"
)


def add_section(report: Path, result: "CheckedRelease") -> None:
    """At the top of the page."""
    page = report.read_text(encoding="utf-8")
    head, body, rest = page.partition("<body>")
    report.write_text(f"{head}{body}{section(result)}{rest}", encoding="utf-8")


def section(result: "CheckedRelease") -> str:
    """Checks, split by step and figures by version, as HTML."""
    checks = [(c.name, "held" if c.passed else "BROKE", c.said) for c in result.checks]
    steps = [
        (
            f"{s.weight} %",
            f"{s.free_on_candidate} of {s.free}",
            f"{s.callers_on_candidate} of {s.callers}",
        )
        for s in result.steps
    ]
    versions = [
        (v.version, v.requests, f"{v.error_rate:.3%}", v.p50_ms, v.p99_ms) for v in result.versions
    ]
    title = f"{result.model}: version {result.candidate} released over {result.stable}"
    return (
        f'<section style="{_STYLE}"><h1>{escape(title)}</h1>'
        f"<p>{escape(result.verdict)}</p>"
        + _table(("check", "", "figures"), checks)
        + _table(("weight", "requests on it", "callers with a key on it"), steps)
        + _table(("version", "requests", "failed", "p50 ms", "p99 ms"), versions)
        + "</section>"
    )


def _table(heads: Row, rows: Sequence[Row]) -> str:
    cells = [_row("th", heads), *(_row("td", row) for row in rows)]
    return f'<table cellpadding="6">{"".join(cells)}</table>'


def _row(tag: str, cells: Row) -> str:
    written = ("" if cell is None else escape(str(cell)) for cell in cells)
    return "<tr>" + "".join(f'<{tag} align="left">{cell}</{tag}>' for cell in written) + "</tr>"
