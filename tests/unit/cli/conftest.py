"""The script `vlserve` in a project folder of its own."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from support.command_line import Ended, Run
from vlserve.cli import app, main

PROGRAM = typer.main.get_command(app)
"""Built once: that takes longer than most commands that are refused."""


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """A command that ends leaves this process to stop as it did: else Ctrl-C would no longer end
    the tests."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the script itself, in a project folder of its own where no stack is up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLSERVE_PROJECT_DIR", str(tmp_path))
    monkeypatch.setenv("VLSERVE_CONTROL__PORT", "9")  # discard: nothing listens
    monkeypatch.setenv("VLSERVE_GATEWAY__PORT", "9")
    monkeypatch.setattr("vlserve.cli.app", PROGRAM)

    def run_script(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vlserve", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as system_exit:  # anything else would be a traceback
            main()
        output = capsys.readouterr()
        code = system_exit.value.code
        return Ended(code if isinstance(code, int) else 0, output.out, output.err)

    return run_script
