"""drill: six releases, good and bad, on the stack that is up, or the same requests to both engines;
the exit code is the verdict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import Group, Model, control_client, folder_option, refuse_other_machine
from vlserve.settings import Settings, load_settings

if TYPE_CHECKING:
    from vlserve.drill.engine_comparison import EnginesResult
    from vlserve.drill.game_day import DrillResult

_LONGEST_REASON = 100


def drill(
    model: Model,
    out: Annotated[
        Path | None,
        folder_option("Folder for the reports. Default: a new folder in .vlserve/drill/."),
    ] = None,
    engines: Annotated[
        bool,
        typer.Option(
            "--engines",
            help="Instead of the releases, compare the answers of TorchServe, of Triton and of the "
            "archive's code without engine to the same requests, good and bad, one at a time and "
            "at 16 connections. Two stacks are started for it, one after the other. "
            "Default: the releases.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Release one good and five faulty copies of a model, and check that each is judged right.

    The copies are of the model's stable version, have the name MODEL-drill and callers of their
    own; the model itself is not touched. Exit code 0 when all six decisions are right and no
    request is lost that need not be. Takes two to five minutes.
    """
    refuse_other_machine("drill")
    settings = load_settings()
    timestamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = out or settings.state_dir / "drill" / f"{model}-{timestamp}"
    run = _run_engines if engines else _run_releases
    passed = run(settings, model, folder, as_json)
    raise typer.Exit(0 if passed else 1)


def _run_releases(settings: Settings, model: str, folder: Path, as_json: bool) -> bool:
    from vlserve.drill.game_day import run_drill

    with control_client() as control, progress(f"drilling {model}") as show:
        result = run_drill(settings, control, model, folder, show)
    if as_json:
        print_json(result)
    else:
        _print_releases(result)
        print_line(f"reports: {folder}")
    return result.passed


def _print_releases(result: "DrillResult") -> None:
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


def _run_engines(settings: Settings, model: str, folder: Path, as_json: bool) -> bool:
    from vlserve.drill.checked_release import stored_archive
    from vlserve.drill.engine_comparison import compare_engines
    from vlserve.errors import NotReady

    with control_client() as control, progress(f"drilling {model}") as show:
        stable = control.model(model).stable
        if stable is None:
            raise NotReady(f"{model} has no stable version to drill with")
        archive = stored_archive(settings, model, stable)
        result = compare_engines(settings, archive, folder, show)
    if as_json:
        print_json(result)
    else:
        _print_engines(result)
    return result.passed


def _print_engines(result: "EnginesResult") -> None:
    rows = [
        (
            each.side,
            each.against,
            each.requests,
            each.statuses,
            each.others,
            f"{each.largest_score:.1e}",
            "-" if each.limit is None else f"{each.limit:.0e}",
            "" if each.passed else "WRONG",
        )
        for each in result.comparisons
    ]
    heads = (
        "ANSWERS OF",
        "AGAINST",
        "REQUESTS",
        "OTHER STATUS",
        "OTHER BODY",
        "SCORES BY",
        "LIMIT",
    )
    print_table((*heads, ""), rows)
    for each in result.comparisons:
        for example in each.examples:
            print_line(f"{each.side} against {each.against}: {example}")
    if any(each.limit is None for each in result.comparisons):
        print_line("no limit: dynamic INT8 follows the requests that share its batch")
    print_line(
        f"{'one answer' if result.passed else 'not one answer'}: {result.model} {result.version}, "
        f"{result.took_s:.0f} s"
    )
    print_line(f"report: {result.result}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.TEST)(drill)
