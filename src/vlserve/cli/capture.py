"""capture: inputs of requests, kept to look at where two versions differ."""

from typing import Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line
from vlserve.cli.parameters import Group, Model, control_client, finite
from vlserve.control.wire.views import CaptureView

capture = typer.Typer(
    no_args_is_help=True,
    help="Keep inputs of requests, to look at where two versions differ; off by default.",
    rich_markup_mode="markdown",
)


@capture.command()
def start(
    model: Model,
    share: Annotated[
        float,
        typer.Option(
            min=0.000001, max=1, callback=finite, help="Share of the requests, from 0 to 1."
        ),
    ] = 0.1,
    days: Annotated[
        float,
        typer.Option(
            min=0.001, max=3650, callback=finite, help="Days after which an input is deleted."
        ),
    ] = 7.0,
    max_mib: Annotated[
        int,
        typer.Option(min=1, max=2**24, help="MiB of disk that all inputs of the model may take."),
    ] = 512,
    as_json: AsJson = False,
) -> None:
    """Keep the images and texts of a share of a model's requests, readable by you alone.

    They are what callers sent, on this machine's disk and not encrypted. A request of more than 4
    MiB is not kept, nor any while less than 16 MiB of the disk are free.
    """
    with control_client() as control:
        _tell(control.start_capture(model, share, days, max_mib), as_json)


@capture.command()
def stop(model: Model, as_json: AsJson = False) -> None:
    """Keep no more inputs; those that are kept stay until they are old."""
    with control_client() as control:
        _tell(control.end_capture(model, "stop"), as_json)


@capture.command()
def purge(model: Model, as_json: AsJson = False) -> None:
    """Delete all inputs of a model, and keep no more."""
    with control_client() as control:
        _tell(control.end_capture(model, "purge"), as_json)


@capture.command()
def status(model: Model, as_json: AsJson = False) -> None:
    """Print what is kept of a model's requests."""
    with control_client() as control:
        _tell(control.capture(model), as_json)


def _tell(view: CaptureView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    if view.share:
        share = f"{100 * view.share:g} % of the requests of {view.model} are kept"
        print_line(f"{share} for {view.days:g} days, in {view.max_bytes / 1024**2:g} MiB")
    else:
        print_line(f"inputs of {view.model} are not kept")
    print_line(f"{view.inputs} inputs are there, {view.bytes / 1024**2:.1f} MiB")


def add_to(app: typer.Typer) -> None:
    app.add_typer(capture, name="capture", rich_help_panel=Group.ROLLOUT)
