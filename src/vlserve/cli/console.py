"""console: a link to the pages that show what serves."""

import webbrowser
from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line
from vlserve.cli.parameters import Group, control_client


def console(
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Print the link only. Default: open a browser too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print and open a link to the console; it lets one browser in, once."""
    with control_client() as control:
        link = control.console_link()
        url = f"{control.url}{link.path}"
    if as_json:
        print_json({"url": url, "valid_s": link.valid_s})
        return
    print_line(url)
    print_line(f"works once, within {link.valid_s / 60:g} minutes")
    if not no_open:
        webbrowser.open(url)


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.STACK)(console)
