"""The HTML of a checked release."""

from pathlib import Path
from xml.etree import ElementTree

from vlserve.drill.release_result import CheckedRelease
from vlserve.drill.report import render_section
from vlserve.loadgen.release_checks import Check, StepSplit, VersionSummary
from vlserve.loadgen.report_page import add_section

RESULT = CheckedRelease(
    model="tagger",
    candidate=2,
    stable=1,
    rate_per_s=20.0,
    passed=False,
    verdict="broke: none lost (<script>1 & 2</script>)",
    checks=(Check("promoted", True, "promoted"), Check("none lost", False, "1 of 9 <b>")),
    steps=(StepSplit(10, 40, 4, 20, 2),),
    versions=(VersionSummary(1, 30, 0, 8.0, 20.5), VersionSummary(2, 4, 1, None, None)),
    rollback_ms=0.0,
    report=Path("report.html"),
    result=Path("result.json"),
)


def test_a_section_has_checks_splits_and_versions_and_escapes_them() -> None:
    html = render_section(RESULT)
    section = ElementTree.fromstring(html)  # well-formed: nothing of the result is markup
    tables = [
        [[cell.text or "" for cell in row] for row in table] for table in section.findall("table")
    ]
    assert section.findtext("h1") == "tagger: version 2 released over 1"
    assert section.findtext("p") == RESULT.verdict
    checks, steps, versions = tables
    assert checks[1:] == [["promoted", "held", "promoted"], ["none lost", "BROKE", "1 of 9 <b>"]]
    assert steps[1:] == [["10 %", "4 of 40", "2 of 20"]]
    assert versions[1:] == [["1", "30", "0.000%", "8.0", "20.5"], ["2", "4", "25.000%", "", ""]]
    assert versions[0] == ["version", "requests", "failed", "p50 ms", "p99 ms"]


def test_it_stands_at_the_top_of_locusts_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<html><body><div>charts</div></body></html>", encoding="utf-8")
    add_section(page, render_section(RESULT))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<html><body>")
    assert text.index("every check" if RESULT.passed else "broke: ") < text.index("charts")
