"""Parameters that several commands share, and the groups in which `vlserve --help` lists them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlserve.control.client import ControlClient
from vlserve.settings import load_settings


class Group(StrEnum):
    """Panels of `vlserve --help`, in the order in which the commands are registered."""

    STACK = "Stack"
    BUILD = "Build"
    VERSIONS = "Versions"
    ROLLOUT = "Rollout"
    TEST = "Test"


Model = Annotated[str, typer.Argument(help="Name of the model, as `vlserve status` lists it.")]
Version = Annotated[
    int, typer.Argument(min=1, help="Number of the version, as `vlserve status` lists it.")
]
ArchiveFile = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, readable=True, help="Archive file (.mar), as export writes it."
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse data with bad lines. Default: leave them out and list them."
    ),
]


def control_client() -> ControlClient:
    """Return a client of the stack that these settings describe; a context manager."""
    return ControlClient.of(load_settings())
