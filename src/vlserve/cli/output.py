"""What commands print: one JSON document with --json, else lines and tables for people.

Progress and errors go to stderr, results to stdout, so that a pipe carries results alone.
"""

import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of lines and tables.")
]

stdout = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1000)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def print_warning(text: str) -> None:
    """Print one line on stderr, of what does not keep the command from its work."""
    stderr.print(literal(f"warning: {text}"))


def speak_any_encoding() -> None:
    """Print what a terminal's encoding lacks as \\uXXXX, and not raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; where its encoding lacks a character, as JSON escapes."""
    text = json.dumps(value, default=_plain, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=_plain, indent=2)
    with _named_stdout():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def print_line(text: str) -> None:
    """Print one line for people, as it is: neither rich nor the terminal takes orders from it."""
    with _named_stdout():
        stdout.print(literal(text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table for people, its cells as they are: see `print_line`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(literal(column))
    for row in rows:
        table.add_row(*(literal("" if cell is None else str(cell)) for cell in row))
    with _named_stdout():
        stdout.print(table)


@contextmanager
def _named_stdout() -> Iterator[None]:
    """Say where a write failed, which the error of a full disk does not."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _leave_stdout()
        raise OSError(error.errno, error.strerror, "standard output") from error


def leave_full_stdout() -> None:
    """Let go of a standard output that takes no more: Python would write to it once more at its
    end, and exit with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        _leave_stdout()


def _leave_stdout() -> None:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # as it exits


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show ``what`` and the newest message: a spinner on a terminal, plain lines elsewhere."""
    if not stderr.is_terminal:
        stderr.print(literal(what))
        yield lambda message: stderr.print(literal(f"  {message}"))
        return
    spinner = "dots" if stderr.encoding.startswith("utf") else "line"
    with stderr.status(literal(what), spinner=spinner) as status:
        yield lambda message: status.update(literal(f"{what}: {message}"))


def literal(text: str) -> Text:
    """Return a text without rich's markup, in which what steers a terminal is an escape: labels and
    reasons come from archives, and paths may hold anything."""
    return Text(
        "".join(repr(character)[1:-1] if _steers(character) else character for character in text)
    )


def _steers(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) == "Cc"
