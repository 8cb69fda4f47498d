"""stress: load on a served model through the gateway; the exit code is the verdict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import (
    MAX_VERSION,
    Group,
    Model,
    file_option,
    finite,
    folder_option,
    refuse_other_machine,
)
from vlserve.errors import StackDown
from vlserve.settings import Settings, load_settings
from vlserve.tls import trust_of

if TYPE_CHECKING:
    from vlserve.loadgen.release_checks import Limits

DEFAULT_USERS = 4


def _new_folder(settings: Settings, model: str) -> Path:
    timestamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return settings.state_dir / "stress" / f"{model}-{timestamp}"


def refuse_without_gateway(settings: Settings) -> None:
    """Raise StackDown where nothing listens at the gateway's address: a run would only fail."""
    try:
        trust = trust_of(settings.gateway_tls)
        url = f"{settings.gateway_url}/health"
        httpx.get(url, timeout=5.0, trust_env=False, verify=trust)
    except httpx.ConnectError as error:
        raise StackDown(
            f"no answer from the gateway at {settings.gateway_url} ({error}): "
            "start it with `vlserve up`"
        ) from error
    except httpx.TransportError:
        return  # slow is what a load run finds out


def stress(
    model: Model,
    users: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of callers, each of which asks again as soon as it is answered (closed "
            f"loop). Default: {DEFAULT_USERS}.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            callback=finite,
            help="Requests a second, sent on schedule whatever the answers do (open loop), in "
            "place of --users. Default: closed loop.",
        ),
    ] = None,
    duration: Annotated[
        int,
        typer.Option(min=1, help="Length of each run in seconds; 3 s of warm-up come before it."),
    ] = 30,
    data: Annotated[
        Path | None,
        file_option(
            "Requests, JSON lines with id, img and text. Default: the drawn demo set, or, of a "
            "model with an adopted version, that one's probes."
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_VERSION, help="Version to load. Default: the gateway chooses by weight."
        ),
    ] = None,
    sticky_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Share of requests that carry a sticky key, from 0 to 1.",
        ),
    ] = 0.0,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of processes that send, for more load than one core of the client makes.",
        ),
    ] = 1,
    max_error_rate: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Limit of the share of failed requests, from 0 to 1.",
        ),
    ] = 0.0,
    max_p99_ms: Annotated[
        float,
        typer.Option(min=1, callback=finite, help="Limit of the p99 latency in milliseconds."),
    ] = 1000.0,
    find_limit: Annotated[
        bool,
        typer.Option(
            "--find-limit",
            help="Find the highest rate that holds the limits, about ten runs. Default: one run.",
        ),
    ] = False,
    gray_release: Annotated[
        bool,
        typer.Option(
            "--gray-release",
            help="Release --version (default: the newest ready one) in steps that take --duration "
            "together, roll it back, and judge what callers saw. Default: no release.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        folder_option("Folder for the reports. Default: a new folder in .vlserve/stress/."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a model through the gateway and judge the answers; exit code 0 when the limits held."""
    from vlserve.loadgen import max_rate, stress_run, stress_tables
    from vlserve.loadgen.exchange_requests import adopted_archive
    from vlserve.loadgen.release_checks import Limits
    from vlserve.loadgen.stress_plan import StressPlan

    if sum(1 for load in (users, rate, find_limit) if load) > 1:
        raise typer.BadParameter("give one of --users, --rate and --find-limit")
    settings = load_settings()
    if gray_release:
        if users or find_limit or sticky_share or processes > 1:
            raise typer.BadParameter("--gray-release has callers of its own: give --rate at most")
        refuse_other_machine("stress --gray-release")
        folder = out or _new_folder(settings, model)
        limits = Limits(max_error_rate, max_p99_ms)
        _check_release(model, version, duration, rate, data, limits, folder, as_json)
        return
    refuse_without_gateway(settings)
    plan = StressPlan(
        url=settings.gateway_url,
        model=model,
        data=data,
        archive=None if data else adopted_archive(settings.model_store, model),
        users=None if rate else users or DEFAULT_USERS,
        rate_per_s=rate,
        duration_s=duration,
        max_error_rate=max_error_rate,
        max_p99_ms=max_p99_ms,
        version=version,
        sticky_share=sticky_share,
        processes=processes,
        api_key=next(iter(settings.gateway.api_keys), ""),
    )
    folder = out or _new_folder(settings, model)
    folder.mkdir(parents=True, exist_ok=True)
    result: max_rate.LimitResult | stress_run.StressResult
    with progress(f"stressing {model}") as show:
        if find_limit:
            result = max_rate.find_limit(plan, folder, show)
        else:
            result = stress_run.run_stress(plan, folder, show)
    if isinstance(result, max_rate.LimitResult):
        passed = result.highest_held_per_s is not None
        table, verdict = stress_tables.limit_table(result), stress_tables.limit_verdict(result)
    else:
        passed = result.passed
        table, verdict = stress_tables.run_table(result), result.verdict
    if as_json:
        print_json(result)
    else:
        print_table(*table)
        if isinstance(result, stress_run.StressResult) and result.stages is not None:
            print_line("")
            print_table(*stress_tables.stage_table(result.stages))
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
    from vlserve.drill.checked_release import run_checked_release

    settings = load_settings()
    with (
        ControlClient.of(settings) as control,
        progress(f"releasing {model} with callers") as show,
    ):
        result = run_checked_release(
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
    app.command(rich_help_panel=Group.TEST)(stress)
