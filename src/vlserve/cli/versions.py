"""register, rollback, unload, history: words for the control service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import Model, Version, control_client


def register(
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    as_json: AsJson = False,
) -> None:
    """Verify an archive, load it beside what serves and probe it; it gets no traffic yet."""
    from vlserve.control.tuning import read_tuning

    tuning = read_tuning(archive)
    with control_client() as control, progress(f"registering {archive.name}"):
        done = control.register(archive, tuning)
    if as_json:
        print_json(done)
        return
    if done.already_registered:
        kept = f"tuning {tuning.serving} stored" if tuning else "tuning removed"
        todo = f"{kept}, in force at its next load" if done.retuned else "nothing to do"
        print_line(
            f"{done.model} {done.version} was registered before, from the same bytes: "
            f"{todo}, it is {done.state}"
        )
        return
    print_line(f"{done.model} {done.version} is {done.state}")
    if done.untuned:
        print_line(f"could not be loaded as tuned, so its tuning was dropped: {done.untuned}")
    elif tuning is not None:
        print_line(f"served as tuned: {tuning.serving}")
    print_line(f"next: vlserve release {done.model} {done.version}")


def rollback(
    model: Model,
    version: Annotated[
        int | None, typer.Argument(min=1, help="Default: the previous stable version.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back to the previous stable version, or to VERSION."""
    with control_client() as control, progress(f"rolling back {model}"):
        done = control.rollback(model, version)
    if as_json:
        print_json(done)
        return
    print_line(f"{model} is back on {done.version}; {done.previous} stays loaded without traffic")


def unload(model: Model, version: Version, as_json: AsJson = False) -> None:
    """Drain a version without weight and take it out of the engine; its archive stays."""
    with control_client() as control, progress(f"unloading {model} {version}"):
        done = control.unload(model, version)
    if as_json:
        print_json(done)
        return
    print_line(f"{model} {done.version} is {done.state}")


def history(model: Model, as_json: AsJson = False) -> None:
    """Everything that happened to a model, oldest first."""
    with control_client() as control:
        events = control.history(model)
    if as_json:
        print_json(events)
        return
    rows = [(e.at[:19], e.version, e.kind, _detail(e.detail)) for e in events]
    print_table(("AT", "VERSION", "EVENT", "DETAIL"), rows)


def _detail(detail: Mapping[str, Any]) -> str:
    """The gates' figures are for --json: they would fill the screen."""
    shown = {key: value for key, value in detail.items() if key != "gates"}
    return " ".join(f"{key}={value}" for key, value in shown.items() if value is not None)


def add_to(app: typer.Typer) -> None:
    for command in (register, rollback, unload, history):
        app.command()(command)
