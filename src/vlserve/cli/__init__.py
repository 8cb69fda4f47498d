"""The command line. Exit codes: 0 done, 1 refused or failed (one line on stderr), 2 usage."""

import importlib.metadata
import sys
from typing import Annotated, NoReturn

import typer

from vlserve.cli import (
    adopt,
    batch,
    build,
    capture,
    console,
    data,
    demo,
    drill,
    feedback,
    index,
    keys,
    predict,
    project,
    recipes,
    release,
    serve,
    stack,
    stress,
    tune,
    versions,
)
from vlserve.cli.failures import explained
from vlserve.cli.locale import go_on_in_utf8
from vlserve.cli.output import leave_full_stdout, literal, print_line, speak_any_encoding, stderr
from vlserve.cli.stopping import Stopped, ended_by_signals
from vlserve.extras import extra_of, missing_extra
from vlserve.runtime.errors import VlserveError


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"vlserve {importlib.metadata.version('vlserve')}")
        raise typer.Exit()


app = typer.Typer(
    name="vlserve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# `vlserve --help` lists the groups, and the commands of each, in this order.
for module in (
    project, stack, serve, console, keys, demo, data, recipes, build, adopt, index, tune,
    versions, release, feedback, capture, predict, batch, stress, drill,
):  # fmt: skip
    module.add_to(app)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Register, query, stress and roll back image + text models."""


def main() -> None:
    """Run the `vlserve` script."""
    go_on_in_utf8()
    speak_any_encoding()
    try:
        with ended_by_signals():
            app()
    except Stopped as stop:
        stderr.print(literal(f"vlserve: stopped by {stop.signal.name}"))
        raise
    except (VlserveError, OSError) as error:
        _fail(explained(error, sys.argv[1:]))
    except ModuleNotFoundError as error:
        extra = extra_of(error.name)
        if extra is None:
            raise
        _fail(missing_extra(extra, str(error.name)))


def _fail(message: str) -> NoReturn:
    stderr.print(literal(f"vlserve: {message}"))
    leave_full_stdout()
    sys.exit(1)
