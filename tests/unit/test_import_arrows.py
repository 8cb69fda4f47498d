"""The arrows of the folders outside src/, which import-linter does not see: it reads packages.

handlers -> runtime, and nothing else, because handler files travel inside archives, where of
vlserve there is the runtime alone. No folder imports the tests.
"""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "examples", "export", "handlers", "loadtest", "serving_config")
ALLOWED = {
    "handlers": ("vlserve.runtime",),
    "export": (
        "vlserve.errors",
        "vlserve.exporter",
        "vlserve.families",
        "vlserve.models",
        "vlserve.runtime",
        "vlserve.training",
    ),
    "examples/client.py": (),
    "examples/mood.py": ("vlserve.runtime",),
    "loadtest": ("vlserve.loadgen",),
}
"""Folder or file -> what of vlserve it may import; other folders may import all of it."""
TESTS = ("conftest", "support", "tests")
FILES = sorted(file for folder in FOLDERS for file in (PROJECT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def relative(file: Path) -> str:
    return str(file.relative_to(PROJECT))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_folder_imports_of_vlserve_what_it_may_and_no_tests(file: Path) -> None:
    folder = file.relative_to(PROJECT).parts[0]
    names = imported(file)
    ours = {name for name in names if within(name, ("vlserve", *FOLDERS))}
    allowed = ALLOWED.get(relative(file), ALLOWED.get(folder, ("vlserve", folder)))
    assert [name for name in ours if not within(name, allowed)] == []
    assert [name for name in names if within(name, TESTS)] == []
    assert ours or folder not in ("handlers", "export"), "a recipe and a handler use ours"


@pytest.mark.parametrize("file", sorted((PROJECT / "tests").rglob("*.py")), ids=relative)
def test_tests_import_no_benchmarks(file: Path) -> None:
    assert [name for name in imported(file) if within(name, ("benchmarks",))] == []


def test_the_folders_that_have_arrows_have_files() -> None:
    folders = {file.relative_to(PROJECT).parts[0] for file in FILES}
    assert ALLOWED.keys() <= folders | {relative(file) for file in FILES}
