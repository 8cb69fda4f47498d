"""Bad values of every kind, for every command: one line or a usage error, and no traceback."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command_line import Ended, Run
from vlserve.cli import app
from vlserve.cli.commands import all_commands

COMMANDS = all_commands(app)


# Paths


def _words(name: str, bad: Any, value: str) -> list[str]:
    """Return a command line where ``bad`` has the value, and what else is required is there."""
    words = [*name.split(), *USEFUL.get(name, ())]
    for parameter in COMMANDS[name].params:
        if parameter is bad:
            word = value
        elif parameter.required:
            word = _fitting(parameter)
        else:
            continue
        words += [word] if parameter.param_type_name == "argument" else [parameter.opts[0], word]
    return words


def _says_why(result: Ended, bad: Any) -> bool:
    """Return whether a command says what it does not take: in its one line, or as a wrong usage of
    that parameter, or of an option that it goes with."""
    if result.code == 1:
        return bool(result.line)
    return any(name in result.refusal for name in (f"'{bad.name}'", "--", "No such option: -1"))


USEFUL = {"demo-data": ("--items", "20")}
"""What keeps a command that succeeds short."""


def _fitting(parameter: Any) -> str:
    if _is_path(parameter):
        return "file" if parameter.type_descriptor.parameter_info.file_okay else "out"
    return {"model": "tagger", "recipe": "resnet_gru"}.get(parameter.name, "1")


def _is_path(parameter: Any) -> bool:
    return "Path" in str(parameter.type_descriptor.annotation)


PARAMETERS = [(name, parameter) for name in COMMANDS for parameter in COMMANDS[name].params]
PATHS = [
    pytest.param(name, parameter, id=f"{name}-{parameter.name}")
    for name, parameter in PARAMETERS
    if _is_path(parameter)
]


def _link(path: Path, to: str) -> None:
    path.symlink_to(to)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)  # a path of 107 bytes at most


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: _link(path, "/dev/zero"),
    "a socket": _socket,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(("name", "parameter"), PATHS)
def test_what_is_neither_file_nor_folder_is_refused_at_once(
    run: Run, tmp_path: Path, name: str, parameter: Any, kind: str
) -> None:
    (tmp_path / "file").touch()
    SPECIAL[kind](tmp_path / "bad")
    result = run(*_words(name, parameter, "bad"))
    assert result.code == 2
    assert f"'bad' is {kind}" in result.refusal


OTHER_PATHS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "dangling": lambda path: _link(path, "nowhere"),
    "loop": lambda path: _link(path, "bad"),
    "below a file": lambda path: None,
    "undecodable": lambda path: None,
    "two lines": lambda path: None,
    "too long": lambda path: None,
    "empty name": lambda path: None,
}
NAMES = {
    "below a file": "file/bad",
    "undecodable": "\udcff",
    "two lines": "two\nlines",
    "too long": "x" * 5000,
    "empty name": "",
}


@pytest.mark.parametrize("kind", OTHER_PATHS)
@pytest.mark.parametrize(("name", "parameter"), PATHS)
def test_a_path_that_cannot_be_used_is_no_traceback(
    run: Run, tmp_path: Path, name: str, parameter: Any, kind: str
) -> None:
    (tmp_path / "file").touch()
    OTHER_PATHS[kind](tmp_path / "bad")
    result = run(*_words(name, parameter, NAMES.get(kind, "bad")))
    if result.code:
        assert _says_why(result, parameter)


FILES = [path for path in PATHS if path.values[1].type_descriptor.parameter_info.file_okay]
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "random": bytes(range(256)) * 8,
    "utf-16": '{"id": "1"}\n'.encode("utf-16"),
    "mark": b"\xef\xbb\xbf{}\n",
    "list": b"[1, 2]\n",
    "deep": b"[" * 100_000,
    "zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize(("name", "parameter"), FILES)
def test_a_file_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, name: str, parameter: Any, kind: str
) -> None:
    (tmp_path / "file").write_bytes(CONTENTS[kind])
    (tmp_path / "bad").write_bytes(CONTENTS[kind])
    result = run(*_words(name, parameter, "bad"))
    assert _says_why(result, parameter)


# Options

VALUES = ["", "x", "-1", "nan", "inf", "9" * 5000, "\udcff", "a=b"]


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        pytest.param(name, parameter, id=f"{name}-{parameter.name}")
        for name, parameter in PARAMETERS
        if not _is_path(parameter) and not getattr(parameter, "is_flag", False)
    ],
)
def test_a_value_that_cannot_be_used_is_no_traceback(
    run: Run, tmp_path: Path, name: str, parameter: Any
) -> None:
    (tmp_path / "file").touch()
    results = {value: run(*_words(name, parameter, value)) for value in VALUES}
    failures = {value: result for value, result in results.items() if result.code}
    assert [value for value, each in failures.items() if not _says_why(each, parameter)] == []
