"""up, down, status: the processes of the stack."""

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, print_warning, progress
from vlserve.cli.parameters import (
    Group,
    control_client,
    refuse_other_machine,
    stack_settings,
)
from vlserve.cli.rollout_text import place, waiting
from vlserve.control.control_access import remote_access
from vlserve.project import find_project_dir, packaged_dir
from vlserve.running_settings import settings_to_reach_stack
from vlserve.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlserve.control.client import ControlClient
    from vlserve.control.wire.rollout_views import RolloutView
    from vlserve.control.wire.views import ModelView, TrafficView
    from vlserve.project_copies import Renewed


def up(
    rebuild_ledger: Annotated[
        bool,
        typer.Option(
            "--rebuild-ledger",
            help="Make a lost or damaged ledger anew first: versions from the archives in "
            "model_store, traffic from the gateway's last routes. Default: refuse to start.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the engine, the gateway and the control service, and wait until they answer."""
    from vlserve.project_copies import renew_copies
    from vlserve.stack import stack

    refuse_other_machine("up")
    copies = renew_copies(find_project_dir(), version("vlserve"))  # settings are among them
    settings = load_settings()
    for doubt in settings.doubts():
        print_warning(doubt)
    with progress("starting the stack") as show:
        stack.up(settings, show, rebuild_ledger)
    if as_json:
        print_json(
            {
                "gateway": settings.gateway_url,
                "control": settings.control_url,
                "project": settings.project_dir,
                "copies": copies,
            }
        )
        return
    _print_renewed(settings.project_dir, copies)
    print_line(f"gateway  {settings.gateway_url}")
    print_line(f"control  {settings.control_url}/docs")


def _print_renewed(project: Path, copies: "Renewed") -> None:
    if copies.replaced or copies.removed:
        print_line(
            f"copies that nobody edited: {len(copies.replaced)} replaced by this version's, "
            f"{len(copies.removed)} removed"
        )
    for name in copies.edited:
        new = packaged_dir() / name
        remark = f"brings another one: {new}" if new.exists() else "has none"
        print_line(f"{name} is edited, and this version of vlserve {remark}")
    if copies.edited:
        print_line(f"once they are compared, `vlserve init {project}` notes it")


def down(as_json: AsJson = False) -> None:
    """Answer the requests in flight, then stop all processes; archives and the ledger stay."""
    from vlserve.stack import stack

    refuse_other_machine("down")
    settings = stack_settings()
    with progress("stopping the stack") as show:
        stopped = stack.down(settings, show)
    if as_json:
        print_json({"stopped": stopped})
        return
    outcome = "is down" if stopped else "was not up"
    print_line(f"the stack of {settings.project_dir} {outcome}")


def status(as_json: AsJson = False) -> None:
    """Show the processes of the stack, the models, and the state and weight of each version."""
    from vlserve.control.client import ControlClient
    from vlserve.errors import ControlError, StackError, SupervisorHangs
    from vlserve.stack import stack
    from vlserve.stack.stopping import processes as left_behind

    access = remote_access()
    settings, trouble = (None, "") if access else settings_to_reach_stack()
    processes, troubles = [], [trouble] if trouble else []
    try:
        processes = stack.status(settings) if settings else []
    except SupervisorHangs as error:
        troubles.append(str(error))
    health, models, rollouts, traffic = None, [], [], []
    with control_client() if settings is None else ControlClient.of(settings) as control:
        try:
            health = control.health()
            models = control.models()
            rollouts = _under_way(control, models)
            traffic = control.traffic()
        except (StackError, ControlError) as error:
            troubles.append(str(error))
    if as_json:
        print_json(
            {
                "processes": processes,
                "health": health,
                "models": models,
                "rollouts": rollouts,
                "traffic": traffic,
                "troubles": troubles,
            }
        )
        return
    if settings and not processes and not models and len(troubles) < 2:
        names = ", ".join(sorted({each.name() for each in left_behind(settings)}))
        if names:
            print_line(
                f"supervisord and the control service are gone, and of the stack of "
                f"{settings.project_dir} these still run: {names}. `vlserve up` starts everything "
                "anew, `vlserve down` ends them"
            )
            return
        print_line(f"the stack of {settings.project_dir} is down: `vlserve up` starts it")
        return
    if access:
        print_line(f"{access.url}; `vlserve status` on its machine shows the processes too")
    else:
        print_table(("PROCESS", "STATE", "PID"), [(p.name, p.state, p.pid) for p in processes])
    states = [health.status] if health else []
    print_line(f"\nhealth: {'; '.join([*states, *troubles])}\n")
    _print_versions(models)
    for warning in health.warnings if health else ():
        print_line(f"\nwarning: {warning}")
    _print_traffic(traffic)
    for view in rollouts:
        print_line(f"\n{place(view)}: {waiting(view)}")


def _print_versions(models: "Sequence[ModelView]") -> None:
    rows = [
        (
            model.model,
            v.version,
            v.state,
            f"{v.weight} %" if v.weight else "",
            f"{v.engine}, not {v.instead_of}" if v.instead_of else v.engine,
            sum(v.workers_ready.values()) or "",
            v.tuning.serving if v.tuning else "",
            v.signer,
            v.reason,
        )
        for model in models
        for v in model.versions
    ]
    print_table(
        ("MODEL", "VERSION", "STATE", "WEIGHT", "ENGINE", "WORKERS", "TUNED", "SIGNER", "REASON"),
        rows,
    )


def _print_traffic(traffic: "Sequence[TrafficView]") -> None:
    """Print what was asked of each version in the last 15 minutes."""
    rows = [
        (model.model, each.version, each.requests, each.failed, each.p50_ms, each.p99_ms)
        for model in traffic
        for each in model.versions
    ]
    if rows:
        print_line("\nlast 15 minutes:\n")
        print_table(("MODEL", "VERSION", "REQUESTS", "FAILED", "P50 MS", "P99 MS"), rows)


def _under_way(control: "ControlClient", models: "Sequence[ModelView]") -> "list[RolloutView]":
    from vlserve.errors import NoRelease

    rollouts = []
    for model in models:
        with suppress(NoRelease):
            rollouts.append(control.rollout(model.model))
    return [view for view in rollouts if view.status.under_way]


def add_to(app: typer.Typer) -> None:
    for command in (up, down, status):
        app.command(rich_help_panel=Group.STACK)(command)
