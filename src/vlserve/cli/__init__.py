"""The command line. Exit codes: 0 done, 1 refused or failed (one line on stderr), 2 usage."""

import sys

import typer

from vlserve.cli import (
    build,
    demo,
    drill,
    index,
    predict,
    project,
    recipes,
    release,
    stack,
    stress,
    tune,
    versions,
)
from vlserve.cli.output import stderr
from vlserve.runtime.errors import VlserveError

app = typer.Typer(
    name="vlserve",
    help="Register, query, stress and roll back image + text models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# `vlserve --help` lists the groups, and the commands of each, in this order.
for module in (
    project, stack, demo, recipes, build, index, tune, versions, release, predict, stress, drill
):  # fmt: skip
    module.add_to(app)


def main() -> None:
    """Run the `vlserve` script."""
    try:
        app()
    except (VlserveError, OSError) as error:
        stderr.print(f"vlserve: {error}", markup=False)
        sys.exit(1)
