"""The commands as a flat table, those of groups by both words: ``data look``."""

from collections.abc import Iterator, Mapping

import typer
from typer.core import TyperCommand, TyperGroup


def all_commands(app: typer.Typer) -> Mapping[str, TyperCommand]:
    """Return every command by its words, in the order of the help."""
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    return dict(_named(program, ""))


def _named(group: TyperGroup, before: str) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _named(command, f"{before}{name} ")
        else:
            assert isinstance(command, TyperCommand)
            command.rich_help_panel = command.rich_help_panel or group.rich_help_panel
            yield f"{before}{name}", command
