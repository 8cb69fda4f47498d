"""adopt: an archive of torch-model-archiver becomes one to register."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_warning, progress
from vlserve.cli.parameters import (
    MAX_VERSION,
    Group,
    file_option,
    file_or_folder_argument,
    file_or_folder_option,
    folder_option,
)
from vlserve.extras import require_extras
from vlserve.runtime.manifest import TORCHSERVE_MANIFEST
from vlserve.settings import Settings, load_settings

if TYPE_CHECKING:
    from vlserve.adopt.adoption import Adoption


def adopt(
    archive: Annotated[
        Path,
        file_or_folder_argument(
            "Archive of torch-model-archiver: a .mar, a .tgz or a folder; or a folder of .mar "
            "files, each of which is adopted."
        ),
    ],
    out: Annotated[
        Path, folder_option("Folder for the archive <name>-<version>.mar. Default: this folder.")
    ] = Path(),
    requests: Annotated[
        Path | None,
        file_or_folder_option(
            "Request body, or a folder of them, whose answers become the probes: .json and .txt "
            "are sent as such, other files without a type, a folder inside as a form of its "
            "files. Of several archives, a folder with an entry for each, called like it. "
            "Default: an empty JSON object."
        ),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            help="URL of the model's predictions where it is served now, e.g. "
            "http://old:8080/predictions/m; its answers become the probes'. Default: the handler "
            "itself answers."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model. Default: its former name, in small letters.",
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_VERSION,
            help="Number of the version. Default: the first number of the former version.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Most requests that the handler gets at once. Default: as --ts-config or the "
            "archive's model-config.yaml says, else 1.",
        ),
    ] = None,
    handler: Annotated[
        str | None,
        typer.Option(
            help="Handler, as torch-model-archiver takes it: a file, FILE:FUNCTION, or one of "
            "TorchServe's own. Default: the archive's."
        ),
    ] = None,
    envelope: Annotated[
        str | None,
        typer.Option(
            help="TorchServe's request envelope: body, json, kserve or kservev2. Default: as "
            "--ts-config says, else none."
        ),
    ] = None,
    ts_config: Annotated[
        Path | None,
        file_option(
            "The config.properties of the server that serves it now. Default: TorchServe's own."
        ),
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option(
            help="Try a batch that fails again in halves, so that the guilty request alone fails; "
            "not for handlers that must not see a request twice."
        ),
    ] = True,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Join an answer that the handler sends in pieces. Default: refuse such a handler.",
        ),
    ] = False,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code",
            help="Take compiled libraries (.so) that the archive holds. Default: refuse them.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an archive of torch-model-archiver one to register, its handler unchanged.

    The handler runs in workers alone, with their rights: the .py files are listed.
    """
    require_extras("cpu")
    from vlserve.adopt.adoption import Wishes
    from vlserve.adopt.adoption import adopt as adopted_from
    from vlserve.adopt.checks import Allowed
    from vlserve.runtime.legacy_handler import TRUST

    settings = load_settings()
    names = frozenset(settings.trust.pickle)
    os.environ[TRUST] = settings.trust.model_dump_json()  # for the worker that records
    wishes = Wishes(
        name, version, batch_size, handler, envelope, ts_config, requests, record, isolate,
        Allowed(names, trust_code, whole),
    )  # fmt: skip
    several = _archives_in(archive)
    if several and (name or record or handler):
        raise typer.BadParameter("--name, --record and --handler are for one archive")
    if several and requests and not requests.is_dir():
        raise typer.BadParameter(
            f"{archive} holds several archives: give a folder with an entry for each",
            param_hint="--requests",
        )
    adoptions = []
    for each in several or [archive]:
        own = replace(wishes, requests=_requests_of(each, requests)) if several else wishes
        with progress(f"adopting {each.name}") as show:
            adoptions.append(adopted_from(each, out, own, settings.folder("handlers"), show))
        _warn(adoptions[-1], settings)
        if not as_json:
            _print(adoptions[-1])
    if as_json:
        print_json(adoptions if several else adoptions[0])


def _archives_in(folder: Path) -> list[Path]:
    """Return the archives in a folder that is none itself, as a model store of TorchServe."""
    if not folder.is_dir() or (folder / TORCHSERVE_MANIFEST).is_file():
        return []
    return sorted(folder.glob("*.mar"))


def _requests_of(archive: Path, requests: Path | None) -> Path | None:
    """Return the entry of one archive among the requests of several."""
    if requests is None:
        return None
    entries = sorted(requests.iterdir())
    return next((entry for entry in entries if archive.stem in (entry.name, entry.stem)), None)


def _warn(adoption: "Adoption", settings: Settings) -> None:
    for warning in adoption.warnings:
        print_warning(warning)
    longest_s = adoption.adopted.response_timeout_s or 0
    if longest_s > settings.gateway.timeout_s:
        print_warning(
            f"{adoption.adopted.name} may take {longest_s} s for an answer, and clients get 504 "
            f"after gateway.timeout_s ({settings.gateway.timeout_s:g}): raise that setting"
        )


def _print(adoption: "Adoption") -> None:
    for file, sha256 in adoption.code.items():
        print_line(f"runs {file} (sha256 {sha256})")
    source = adoption.adopted.recorded_from or "the handler itself"
    print_line(
        f"{adoption.model} {adoption.version}, formerly {adoption.adopted.name} "
        f"{adoption.adopted.version}: batch size {adoption.adopted.batch_size}, "
        f"probes {adoption.probes}, answered by {source}"
    )
    print_line(f"wrote {adoption.archive}")
    print_line(f"next: vlserve register {adoption.archive}")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.BUILD)(adopt)
