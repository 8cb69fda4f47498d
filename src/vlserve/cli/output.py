"""What commands print: one JSON document with --json, else lines and tables for people.

Progress and errors go to stderr, results to stdout, so that a pipe carries results alone.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

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
    stderr.print(f"warning: {text}", markup=False)


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
    """Print one line for people; markup in ``text`` is not interpreted."""
    with _named_stdout():
        stdout.print(text, markup=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
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
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # as it exits
        raise OSError(error.errno, error.strerror, "standard output") from error


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show ``what`` and the newest message: a spinner on a terminal, plain lines elsewhere."""
    if not stderr.is_terminal:
        stderr.print(what, markup=False)
        yield lambda message: stderr.print(f"  {message}", markup=False)
        return
    spinner = "dots" if stderr.encoding.startswith("utf") else "line"
    with stderr.status(what, spinner=spinner) as status:
        yield lambda message: status.update(f"{what}: {message}")
