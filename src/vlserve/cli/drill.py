"""drill: six releases, good and bad, on the stack that is up; the exit code is the verdict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import Group, Model, control_client, folder_option
from vlserve.settings import load_settings

_LONGEST_REASON = 100


def drill(
    model: Model,
    out: Annotated[
        Path | None,
        folder_option("Folder for the reports. Default: a new folder in .vlserve/drill/."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Release one good and five faulty copies of a model, and check that each is judged right.

    The copies are of the model's stable version, have the name MODEL-drill and callers of their
    own; the model itself is not touched. Exit code 0 when all six decisions are right and no
    request is lost that need not be. Takes two to five minutes.
    """
    from vlserve.drill.game_day import run_drill

    settings = load_settings()
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = out or settings.state_dir / "drill" / f"{model}-{started}"
    with control_client() as control, progress(f"drilling {model}") as show:
        result = run_drill(settings, control, model, folder, show)
    if as_json:
        print_json(result)
    else:
        rows = [
            (
                case.name,
                case.expected,
                case.decision,
                _shortened(", ".join(case.gates) or case.why),
                f"{case.after_s:.0f} s",
                case.requests,
                case.lost,
                "" if case.passed else "WRONG",
            )
            for case in result.cases
        ]
        print_table(("CASE", "EXPECTED", "DECIDED", "WHY", "AFTER", "REQUESTS", "LOST", ""), rows)
        right = sum(case.passed for case in result.cases)
        print_line(
            f"{right} of {len(result.cases)} right, {result.rate_per_s:g} requests/s to "
            f"{result.twin}, {result.instances} engine instance(s), {result.took_s:.0f} s"
        )
        print_line(f"reports: {folder}")
    raise typer.Exit(0 if result.passed else 1)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.TEST)(drill)
