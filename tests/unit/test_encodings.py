"""Every text that our code reads or writes names its encoding: the locale's may be another one.

Ruff's PLW1514 sees only what it knows to be a path; this looks at every call of these names.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import PROJECT

FOLDERS = ("src", "export", "handlers", "loadtest", "examples", "docs", "benchmarks", "tests")
MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt"}


def without_encoding(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that read or write text in whatever encoding the locale has."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _is_of_the_locale(call):
            yield f"line {call.lineno}: {ast.unparse(call)[:80]}"


def _is_of_the_locale(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    match call.func:
        case ast.Attribute(attr="read_text"):
            return not call.args
        case ast.Attribute(attr="write_text"):
            return len(call.args) < 2
        case ast.Attribute(attr="open"):  # of a path; a module's open has the file first
            if "fileobj" in keywords:  # tarfile's
                return False
            return _mode(call, 0, keywords) in MODES if call.args or "mode" in keywords else True
        case ast.Attribute(attr="fdopen") | ast.Name(id="open"):
            return _mode(call, 1, keywords) in MODES
        case ast.Attribute(attr="NamedTemporaryFile" | "TemporaryFile"):
            return _mode(call, 0, keywords, default="wb") in MODES
        case ast.Attribute(attr="run" | "Popen" | "check_output" | "check_call"):
            return "text" in keywords or "universal_newlines" in keywords
        case ast.Name(id="FileHandler" | "WatchedFileHandler" | "RotatingFileHandler"):
            return True
    return False


def _mode(
    call: ast.Call, place: int, keywords: dict[str | None, ast.expr], default: str = "r"
) -> object:
    mode = keywords.get("mode") or (call.args[place] if len(call.args) > place else None)
    return default if mode is None else getattr(mode, "value", None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_are_read_and_written_in_a_named_encoding(folder: str) -> None:
    files = sorted((PROJECT / folder).rglob("*.py"))
    calls = {path: list(without_encoding(_parsed(path))) for path in files}
    assert files and {path: lines for path, lines in calls.items() if lines} == {}


def _parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "call",
    ["p.read_text()", "p.write_text('a')", "p.open()", "p.open('w')", "open(p)", "open(p, 'a')",
     "subprocess.run(c, text=True)", "p.read_text(errors='replace')"],
)  # fmt: skip
def test_the_check_finds_them(call: str) -> None:
    assert len(list(without_encoding(ast.parse(call)))) == 1


@pytest.mark.parametrize(
    "call",
    ["p.read_text(encoding='utf-8')", "p.open('rb')", "open(p, 'rb')", "zip.open(member)",
     "Image.open(file)", "tarfile.open(fileobj=stream, mode='w')", "subprocess.run(c)",
     "p.write_text('a', 'utf-8')"],
)  # fmt: skip
def test_the_check_passes_the_others(call: str) -> None:
    assert list(without_encoding(ast.parse(call))) == []
