"""The documents as pages: their links, the index that lists them, the generated reference."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.documents import GENERATED, PROJECT, documents

SOURCES = PROJECT / "src" / "vlserve"
ROOTS = (PROJECT, SOURCES, SOURCES / "control", PROJECT / "src")
"""Folders that paths in documents may start from."""
PAGES = [*documents(), *sorted(GENERATED.glob("*.md"))]


def relative(document: Path) -> str:
    return str(document.relative_to(PROJECT))


def links(document: Path) -> list[tuple[str, str]]:
    """Return the path and the anchor of each link inside the project."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)#?([^)]*)\)", text)


def anchors(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_links_inside_the_project_lead_somewhere(document: Path) -> None:
    for path, anchor in links(document):
        target = document.parent / path if path else document
        assert target.exists(), f"{path} in {document.name}"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor} in {document.name}"


@pytest.mark.parametrize("document", PAGES, ids=relative)
def test_every_file_of_ours_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w./-]+\.(?:py|lua|sh|conf|yaml))`", text))
    assert [name for name in names if not exists(name, document.parent)] == []


def exists(name: str, beside: Path) -> bool:
    if any((root / name).exists() for root in (*ROOTS, beside)):
        return True
    folders = ("src", "handlers", "serving_config", "tests")
    return "/" not in name and any(any((PROJECT / top).rglob(name)) for top in folders)


def test_the_index_lists_every_page_of_docs() -> None:
    index = PROJECT / "docs" / "index.md"
    targets = {(index.parent / path).resolve() for path, _ in links(index)}
    pages = {page for page in PAGES if page.is_relative_to(index.parent)} - {index}
    assert pages <= targets, sorted(relative(page) for page in pages - targets)


@pytest.mark.long
def test_the_reference_is_what_the_code_says() -> None:
    process = subprocess.run(
        [sys.executable, PROJECT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        encoding="utf-8",
    )
    assert process.returncode == 0, process.stderr
