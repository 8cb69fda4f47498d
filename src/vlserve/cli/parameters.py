"""Parameters that several commands share, and the groups in which `vlserve --help` lists them."""

import math
import stat
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from vlserve.cli.output import print_warning
from vlserve.control.client import ControlClient
from vlserve.control.control_access import URL, remote_access
from vlserve.control.domain import MODEL_NAME_RULE
from vlserve.errors import ModelNotFound, NotThisMachine
from vlserve.running_settings import settings_to_reach_stack
from vlserve.runtime.manifest import ModelName
from vlserve.settings import Settings
from vlserve_worker.video import FrameChoice


class Group(StrEnum):
    """Panels of `vlserve --help`, in the order in which the commands are registered."""

    STACK = "Stack"
    BUILD = "Build"
    VERSIONS = "Versions"
    ROLLOUT = "Rollout"
    TEST = "Test"


MAX_VERSION = 2**31 - 1
"""As the manifest has it."""

_MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def file_option(help: str) -> Any:
    """Return an option that names a file to read.

    Anything but a regular file is refused at once: to read a FIFO or a device may never end.
    """
    return typer.Option(
        exists=True, dir_okay=False, readable=True, callback=_regular_file, help=help
    )


def file_argument(help: str) -> Any:
    """Return an argument that names a file to read; see `file_option`."""
    return typer.Argument(
        exists=True, dir_okay=False, readable=True, callback=_regular_file, help=help
    )


def files_argument(help: str) -> Any:
    """Return an argument that names files to read; see `file_option`."""
    return typer.Argument(
        exists=True, dir_okay=False, readable=True, callback=_regular_files, help=help
    )


def file_or_folder_argument(help: str) -> Any:
    """Return an argument that names a file or a folder to read; see `file_option`."""
    return typer.Argument(exists=True, readable=True, callback=_regular_file_or_folder, help=help)


def file_or_folder_option(help: str, *names: str) -> Any:
    """Return an option, called as its parameter or by ``names``, for a file or a folder to read."""
    return typer.Option(
        *names, exists=True, readable=True, callback=_regular_file_or_folder, help=help
    )


def written_file_option(help: str) -> Any:
    """Return an option that names a file to write, which need not be there."""
    return typer.Option(dir_okay=False, callback=_regular_file, help=help)


def folder_option(help: str) -> Any:
    """Return an option that names a folder to write, which need not be there."""
    return typer.Option(file_okay=False, callback=require_folder, help=help)


def folder_argument(help: str) -> Any:
    """Return an argument that names a folder to write, which need not be there."""
    return typer.Argument(file_okay=False, callback=require_folder, help=help)


def _regular_file(path: Path | None) -> Path | None:
    return _require(path, (stat.S_IFREG,), "a regular file")


def _regular_files(paths: list[Path]) -> list[Path]:
    for path in paths:
        _regular_file(path)
    return paths


def _regular_file_or_folder(path: Path | None) -> Path | None:
    return _require(path, (stat.S_IFREG, stat.S_IFDIR), "a regular file or a folder")


def require_folder(path: Path | None) -> Path | None:
    """Return ``path``; BadParameter where it is there, and no folder."""
    return _require(path, (stat.S_IFDIR,), "a folder")


def _require(path: Path | None, kinds: Collection[int], expected: str) -> Path | None:
    if path is None or not path.exists():
        return path
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in kinds:
        actual = _KINDS.get(kind, "a regular file")
        raise typer.BadParameter(f"{str(path)!r} is {actual}: {expected} is needed")
    return path


def finite(value: float | None) -> float | None:
    """Refuse infinity, which passes for a large number, and no number at all."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a finite number")
    return value


def frame_choice(text: str) -> str:
    """Refuse what names no frame of a video."""
    try:
        FrameChoice.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def text_of_a_caller(text: str | None) -> str | None:
    """Refuse bytes of the command line that are not text in the terminal's encoding."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{text!r} is not text in the terminal's encoding") from error
    return text


def _model_name(name: str) -> str:
    try:
        _MODEL_NAME.validate_python(name)
    except ValidationError:
        raise ModelNotFound(
            f"no model is called {name!r}: {MODEL_NAME_RULE}; `vlserve status` lists the models"
        ) from None
    return name


Model = Annotated[
    str,
    typer.Argument(callback=_model_name, help="Name of the model, as `vlserve status` lists it."),
]
Version = Annotated[
    int,
    typer.Argument(
        min=1, max=MAX_VERSION, help="Number of the version, as `vlserve status` lists it."
    ),
]
ArchiveFile = Annotated[Path, file_argument("Archive file (.mar), as export writes it.")]
Frame = Annotated[
    str,
    typer.Option(
        callback=frame_choice,
        metavar="FRAME",
        help="Frame of a video: first, clear (the first that is neither black nor blurred), "
        "frame:N (from 0), or second:S (the one shown at second S).",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse data with bad lines. Default: leave them out and list them, unless they are "
        "more than half.",
    ),
]


def control_client() -> ControlClient:
    """Return a client of the control service that VLSERVE_CONTROL_URL names, else of the stack of
    this project; a context manager."""
    access = remote_access()
    return ControlClient.at(access) if access else ControlClient.of(stack_settings())


def refuse_other_machine(command: str) -> None:
    """Raise NotThisMachine where VLSERVE_CONTROL_URL names a stack, for a command that works on
    files or processes of the stack itself."""
    access = remote_access()
    if access is not None:
        raise NotThisMachine(
            f"`vlserve {command}` works on the machine of the stack alone, and {URL} names "
            f"{access.url}: run it there, or unset {URL} for the stack of this project"
        )


def stack_settings() -> Settings:
    """Return the settings by which the stack is reached. Those that cannot be read are named on
    stderr, and keep nobody from going back."""
    settings, trouble = settings_to_reach_stack()
    if trouble:
        print_warning(trouble)
    return settings
