"""The arrows of the folders outside src/, which import-linter does not see: it reads packages.

handlers -> runtime, and nothing else, because handler files travel inside archives, where of
vlserve there is the runtime alone. No folder imports the tests. Recipes import nothing that takes
seconds, because each graph of an export is converted by a process that reads its recipe anew.
"""

import ast
from collections.abc import Iterable
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
SLOW = ("matplotlib", "pandas", "pyarrow", "scipy", "sklearn", "transformers")
"""Libraries that take a second or so to import."""


def files_in(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def relative(file: Path) -> str:
    return str(file.relative_to(PROJECT))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_of_vlserve_what_it_may_and_no_tests(folder: str) -> None:
    names = {relative(file): imported(file) for file in files_in(folder)}
    astray = {file: sorted(astray_of(file, folder, of)) for file, of in names.items()}
    assert {file: of for file, of in astray.items() if of} == {}
    if folder in ("handlers", "export"):
        ours = {file: ours_of(of) for file, of in names.items()}
        assert [file for file, of in ours.items() if not of] == [], "they use nothing of ours"


def astray_of(file: str, folder: str, names: set[str]) -> set[str]:
    """Return what of vlserve, or of the tests, a file imports and may not."""
    prefixes = ALLOWED.get(file, ALLOWED.get(folder, ("vlserve", folder)))
    return {name for name in ours_of(names) if not within(name, prefixes)} | {
        name for name in names if within(name, TESTS)
    }


def ours_of(names: set[str]) -> set[str]:
    return {name for name in names if within(name, ("vlserve", *FOLDERS))}


def test_tests_import_no_benchmarks() -> None:
    names = {relative(file): imported(file) for file in files_in("tests")}
    assert [file for file, of in names.items() if any(within(n, ("benchmarks",)) for n in of)] == []


def test_what_has_arrows_is_there() -> None:
    missing = [name for name in ALLOWED if not files_in(name) and not (PROJECT / name).is_file()]
    assert missing == []


def at_import(file: Path) -> set[str]:
    """Return what a file imports when it is imported itself, with the packages that it lies in."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{name.name}" for name in node.names}
    parts = [name.split(".") for name in names]
    return {".".join(of[:count]) for of in parts for count in range(1, len(of) + 1)}


def files_of(names: Iterable[str]) -> set[Path]:
    """Return the files of modules and packages of vlserve."""
    places = [PROJECT / "src" / name.replace(".", "/") for name in names]
    files = [file for at in places for file in (at.with_suffix(".py"), at / "__init__.py")]
    return {file for file in files if file.is_file()}


@pytest.mark.parametrize("recipe", sorted((PROJECT / "export").glob("*.py")), ids=relative)
def test_a_recipe_is_read_without_what_takes_seconds(recipe: Path) -> None:
    files: set[Path] = set()
    new = {recipe}
    while new:
        files |= new
        names = {file: at_import(file) for file in new}
        assert {file: slow for file in new if (slow := names[file] & {*SLOW})} == {}
        new = files_of(name for of in names.values() for name in of) - files
    assert len(files) > 5
