"""No process of ours imports what lies in the folder that it is started in: `python -m` looks there
first, unless -P forbids it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import PROJECT

SOURCES = sorted((PROJECT / "src").rglob("*.py"))
SCRIPTS = sorted(
    path for path in (PROJECT / "serving_config").rglob("*") if path.suffix in {".conf", ".sh"}
)


def starts_in_its_folder(tree: ast.AST) -> Iterator[str]:
    """Yield the command lines that run a module without -P."""
    for words in ast.walk(tree):
        if isinstance(words, ast.List):
            arguments = [word.value for word in words.elts if isinstance(word, ast.Constant)]
            python = any(ast.unparse(word) == "sys.executable" for word in words.elts)
            if python and "-m" in arguments and "-P" not in arguments[: arguments.index("-m")]:
                yield ast.unparse(words)


def lines_in_their_folder(text: str) -> list[str]:
    return re.findall(r"(?i)^.*python\}?\"? (?!-P )(?:-\w+ )*-m .*$", text, re.MULTILINE)


def test_programs_are_started_without_their_folder() -> None:
    commands = {
        str(path.relative_to(PROJECT)): list(starts_in_its_folder(ast.parse(path.read_bytes())))
        for path in SOURCES
    }
    assert {path: lines for path, lines in commands.items() if lines} == {}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_start_them_so_too(path: Path) -> None:
    assert lines_in_their_folder(path.read_text(encoding="utf-8")) == []


def test_the_checks_find_them() -> None:
    for bad in ("[sys.executable, '-m', 'a']", "[sys.executable, '-m', 'a', '-P']"):
        assert len(list(starts_in_its_folder(ast.parse(bad)))) == 1
    for good in ("[sys.executable, '-P', '-m', 'a']", "[sys.executable, 'file.py']", "['-m']"):
        assert list(starts_in_its_folder(ast.parse(good))) == []
    for bad in ('command="${python}" -m a', 'X=$("$PYTHON" -m a)', '"$PYTHON" -u -m a'):
        assert len(lines_in_their_folder(bad)) == 1, bad
    assert lines_in_their_folder('exec "$PYTHON" -P -m a "$@"') == []
