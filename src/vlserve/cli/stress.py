"""stress: load on a served model through the gateway; the exit code is the verdict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.settings import Settings, load_settings

if TYPE_CHECKING:
    from vlserve.loadgen.release_checks import Limits

DEFAULT_USERS = 4


def _new_folder(settings: Settings, model: str) -> Path:
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return settings.state_dir / "stress" / f"{model}-{started}"


def stress(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    users: Annotated[
        int | None, typer.Option(min=1, help="Callers that ask again once answered (default 4).")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Instead: requests a second, whatever happens.")
    ] = None,
    duration: Annotated[int, typer.Option(min=1, help="Judged seconds of each run.")] = 30,
    data: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON lines; default: the drawn demo set."),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Ask one version.")] = None,
    sticky_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that carry a sticky key.")
    ] = 0.0,
    max_error_rate: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    max_p99_ms: Annotated[float, typer.Option(min=1)] = 1000.0,
    find_limit: Annotated[
        bool, typer.Option("--find-limit", help="Raise the rate until the limits break.")
    ] = False,
    gray_release: Annotated[
        bool,
        typer.Option(
            "--gray-release",
            help="Release VERSION (default: the newest ready one) in steps that take DURATION "
            "together, roll it back, and judge what callers saw.",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the reports.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a model with Locust and judge it: exit code 0 when the limits held."""
    from vlserve.loadgen import max_rate as limit
    from vlserve.loadgen import run, table
    from vlserve.loadgen.plan import StressPlan
    from vlserve.loadgen.release_checks import Limits

    if sum(1 for load in (users, rate, find_limit) if load) > 1:
        raise typer.BadParameter("give one of --users, --rate and --find-limit")
    settings = load_settings()
    if gray_release:
        if users or find_limit or sticky_share:
            raise typer.BadParameter("--gray-release has callers of its own: give --rate at most")
        folder = out or _new_folder(settings, model)
        limits = Limits(max_error_rate, max_p99_ms)
        _check_release(model, version, duration, rate, data, limits, folder, as_json)
        return
    plan = StressPlan(
        url=settings.gateway_url,
        model=model,
        data=data,
        users=None if rate else users or DEFAULT_USERS,
        rate_per_s=rate,
        duration_s=duration,
        max_error_rate=max_error_rate,
        max_p99_ms=max_p99_ms,
        version=version,
        sticky_share=sticky_share,
        api_key=next(iter(settings.gateway.api_keys), ""),
    )
    folder = out or _new_folder(settings, model)
    folder.mkdir(parents=True, exist_ok=True)
    result: limit.LimitResult | run.StressResult
    with progress(f"stressing {model}") as show:
        if find_limit:
            result = limit.find_limit(plan, folder, show)
        else:
            result = run.run_stress(plan, folder, show)
    if isinstance(result, limit.LimitResult):
        passed = result.highest_held_per_s is not None
        shown, verdict = table.limit_table(result), table.limit_verdict(result)
    else:
        passed = result.passed
        shown, verdict = table.run_table(result), table.run_verdict(result)
    if as_json:
        print_json(result)
    else:
        print_table(*shown)
        if isinstance(result, run.StressResult) and result.stages is not None:
            print_line("")
            print_table(*table.stage_table(result.stages))
        print_line(verdict)
        print_line(f"reports: {folder}")
    raise typer.Exit(0 if passed else 1)


def _check_release(
    model: str,
    version: int | None,
    duration_s: float,
    rate_per_s: float | None,
    data: Path | None,
    limits: "Limits",
    folder: Path,
    as_json: bool,
) -> None:
    from vlserve.control.client import ControlClient
    from vlserve.drill.checked_release import check_from_outside

    settings = load_settings()
    with (
        ControlClient(settings.control_url) as control,
        progress(f"releasing {model} with callers") as show,
    ):
        result = check_from_outside(
            settings, control, model, version,
            duration_s=duration_s, rate_per_s=rate_per_s, data=data, limits=limits,
            folder=folder, show=show,
        )  # fmt: skip
    if as_json:
        print_json(result)
    else:
        rows = [(c.name, "held" if c.passed else "broke", c.said) for c in result.checks]
        print_table(("CHECK", "", "FIGURES"), rows)
        print_line(f"{model} {result.candidate}: {result.verdict}")
        print_line(f"reports: {folder}")
    raise typer.Exit(0 if result.passed else 1)


def add_to(app: typer.Typer) -> None:
    app.command()(stress)
