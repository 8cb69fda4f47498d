"""The help of every command: its group, what each parameter means, and completion."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vlserve.cli import app
from vlserve.cli.commands import all_commands
from vlserve.cli.parameters import Group

COMMANDS = all_commands(app)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_a_group_and_begins_with_one_short_sentence(name: str) -> None:
    command = COMMANDS[name]
    assert getattr(command, "rich_help_panel", None) in set(Group)
    first, *rest = (command.help or "").split("\n\n")
    assert first[:1].isupper()
    assert first.endswith(".")
    assert "\n" not in first, "the list of commands shows one line"
    assert all(paragraph.strip().endswith(".") for paragraph in rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_says_what_it_means_and_its_default(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = getattr(parameter, "help", None) or ""
        assert text.endswith("."), f"{name} {parameter.name}: {text!r}"
        assert text[:1].isupper(), f"{name} {parameter.name}: {text!r}"
        listed = parameter.default is not None and parameter.default is not False  # by --help
        assert parameter.required or listed or parameter.name == "as_json" or "Default: " in text, (
            parameter.name
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def test_the_groups_come_in_their_order() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    places = [text.index(f" {group} ─") for group in Group]
    assert places == sorted(places)


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    script = CliRunner().invoke(app, ["--show-completion"], prog_name="vlserve")
    assert script.exit_code == 0, script.output
    assert "_VLSERVE_COMPLETE" in script.output


@pytest.mark.parametrize(
    ("line", "expected"), [("vlserve roll", "rollback"), ("vlserve release --sh", "--shadow")]
)
def test_completion_offers_commands_and_options(line: str, expected: str) -> None:
    environment = {
        "_VLSERVE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    program = "import sys; sys.argv = ['vlserve']; from vlserve.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        encoding="utf-8",
    )
    assert re.split(r"\s+", result.stdout.strip()) == [expected], result.stderr
