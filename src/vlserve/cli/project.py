"""init: a project folder with copies of the packaged files."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line
from vlserve.cli.parameters import Group, folder_argument


def init(
    folder: Annotated[Path, folder_argument("Folder to write; it is made when missing.")],
    as_json: AsJson = False,
) -> None:
    """Write a project folder with the recipes, handlers, configuration and load mix to edit.

    A file that exists is kept. A file of the project wins over the packaged file of the same path;
    one that you delete falls back to it.
    """
    from vlserve.project_copies import write_copies

    result = write_copies(folder.absolute(), version("vlserve"))
    if as_json:
        print_json(result)
        return
    remark = f"; kept {len(result.kept)} that were there" if result.kept else ""
    print_line(f"wrote {len(result.written)} files into {result.folder}{remark}")
    print_line(f"next: cd {folder} && vlserve up")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.STACK)(init)
