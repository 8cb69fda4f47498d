"""The command line. Exit codes: 0 done, 1 refused or failed (one line on stderr), 2 usage."""

import sys

import typer

from vlserve.cli import (
    build,
    demo,
    drill,
    index,
    predict,
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
    help="Register, query, stress and roll back image + text models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (stack, demo, build, index, recipes, versions, release, predict, stress, tune, drill):
    group.add_to(app)


def main() -> None:
    """Entry point of the `vlserve` script."""
    try:
        app()
    except (VlserveError, OSError) as error:
        stderr.print(f"vlserve: {error}", markup=False)
        sys.exit(1)
