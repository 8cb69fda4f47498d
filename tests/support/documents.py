"""The project's Markdown files and the command lines that they show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
GENERATED = PROJECT / "docs" / "reference"
_FOLDERS = (
    ".",
    "docs",
    "docs/*",
    "export",
    "handlers",
    "model_store",
    "examples",
    "tests/recorded",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SHELL = "sh"
CONSOLE = "console"
LANGUAGES = (CONSOLE, SHELL, "text", "python", "json", "yaml", "mermaid")
"""Of fences. ``console``: lines after `$ ` are run by tests/e2e/test_docs.py, the others are
output. ``sh``: every line is a command that is parsed alone. ``text``: no line is a command."""


@dataclass(frozen=True)
class Line:
    """One command line; ``inline``: mentioned in a sentence, so it may leave out what it needs."""

    document: Path
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.document.relative_to(PROJECT)}: {self.text}"


def documents() -> list[Path]:
    """Return all Markdown files that people write."""
    files = {file for folder in _FOLDERS for file in PROJECT.glob(f"{folder}/*.md")}
    return sorted(file for file in files if file.parent != GENERATED)


def fences(document: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fence of a document."""
    return _FENCE.findall(document.read_text(encoding="utf-8"))


def console_commands(document: Path) -> list[str]:
    """Return the commands of a document that a test runs, in order."""
    text = "\n".join(body for language, body in fences(document) if language == CONSOLE)
    return re.findall(r"^\$ (.+)$", _joined(text), re.MULTILINE)


def shell_lines(document: Path) -> Iterator[Line]:
    """Yield every command line in a fence of ``console`` or ``sh``."""
    for command in console_commands(document):
        yield Line(document, command)
    for language, body in fences(document):
        if language == SHELL:
            for text in _joined(body).splitlines():
                if text.strip() and not text.startswith("#"):
                    yield Line(document, text)


def text_lines(document: Path) -> Iterator[Line]:
    """Yield every line of the fences that hold no commands."""
    for language, body in fences(document):
        if language not in (SHELL, CONSOLE, "python"):
            yield from (Line(document, text) for text in body.splitlines() if text.strip())


def inline_code(document: Path) -> Iterator[Line]:
    """Yield every piece of code within a sentence."""
    sentences = _FENCE.sub("", document.read_text(encoding="utf-8"))
    for code in _INLINE.findall(sentences):
        yield Line(document, " ".join(code.split()), inline=True)


def _joined(text: str) -> str:
    """Return shell text with continued lines and here-documents as one line each."""
    text = re.sub(r"<<(\w+)\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return text.replace("\\\n", " ")


def words(text: str) -> list[str]:
    """Return a command line's words, without comment, variables before it, `nice` and the folder
    of the environment."""
    parts = shlex.split(re.sub(r"(?<=\s)\[([^\]]*)\]", r"\1", text), comments=True)
    while parts and (re.match(r"^[A-Z_]+=", parts[0]) or parts[0] == "$"):
        parts = parts[1:]
    if parts[:2] == ["nice", "-n"]:
        parts = parts[3:]
    return [parts[0].removeprefix(".venv/bin/"), *parts[1:]] if parts else []
