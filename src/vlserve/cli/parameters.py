"""What several groups of commands share: their arguments, and the control service."""

from typing import Annotated

import typer

from vlserve.control.client import ControlClient
from vlserve.settings import load_settings

Model = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[int, typer.Argument(min=1, help="Version number.")]


def control_client() -> ControlClient:
    """Of the stack that these settings describe; a context manager."""
    return ControlClient(load_settings().control_url)
