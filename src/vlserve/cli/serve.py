"""serve: one archive behind the gateway, in the foreground, without a control service."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, literal, print_json, print_line, print_warning, stderr
from vlserve.cli.parameters import Group, file_or_folder_argument
from vlserve.cli.stopping import Stopped, ended_by_interrupt
from vlserve.settings import load_settings

if TYPE_CHECKING:
    from vlserve.stack.serving import Serving


def serve(
    archive: Annotated[
        Path,
        file_or_folder_argument("Archive file (.mar), or a folder that holds one alone."),
    ],
    as_json: AsJson = False,
) -> None:
    """Serve one archive in the foreground, without releases: a pod that may be scaled."""
    from vlserve.stack import serving

    settings = load_settings()
    for doubt in settings.doubts():
        print_warning(doubt)
    _log_to_stderr()
    with ended_by_interrupt():
        try:
            with serving.started(settings, archive, _show, _show_log) as server:
                try:
                    server.load()
                    _print_served(server, as_json)
                    server.watch()
                except Stopped as stop:
                    _show(f"stopped by {stop.signal.name}")
                    server.leave(_show)
        except Stopped:
            _show("stopped before it served")
        else:
            _show("every request was answered, and every process has ended")


def _print_served(server: "Serving", as_json: bool) -> None:
    record, url = server.record, server.settings.gateway_url
    if as_json:
        print_json(
            {
                "model": record.model,
                "version": record.version,
                "gateway": url,
                "signer": record.signer,
            }
        )
    else:
        signature = f", signed by {record.signer}" if record.signer else ""
        print_line(f"{record.model} {record.version} is ready at {url}{signature}")


def _show(line: str) -> None:
    stderr.print(literal(line))


def _show_log(name: str, line: str) -> None:
    """Show a line of the gateway's access log as it is, JSON; others with the process's name."""
    _show(line if name == "access" else f"{name}: {line}")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every look at the engine


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.STACK)(serve)
