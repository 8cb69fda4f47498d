"""sign, register, unload, history: the versions of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import (
    ArchiveFile,
    Group,
    Model,
    Version,
    control_client,
    file_option,
)
from vlserve.control.domain import EngineKind

EngineOption = Annotated[
    EngineKind | None,
    typer.Option(
        help="Engine that is to run the version. Default: the one that it was registered for "
        "before; for a new version the stack's own, or torchserve where the stack runs both.",
        show_default=False,
    ),
]

KEY_HELP = (
    "Private key in PEM, P-256, P-384 or P-521, not encrypted, as `openssl ecparam -genkey "
    "-name prime256v1 -noout` writes one."
)


def register(
    archive: ArchiveFile,
    engine: EngineOption = None,
    as_json: AsJson = False,
) -> None:
    """Verify an archive, load it beside the versions that serve, and probe it.

    The new version gets no traffic yet: `vlserve release` gives it some.
    """
    from vlserve.control.tuning import read_tuning
    from vlserve.signing.beside import read_beside

    tuning, files = read_tuning(archive), read_beside(archive)
    with control_client() as control, progress(f"registering {archive.name}"):
        outcome = control.register(archive, tuning, engine, files)
    if as_json:
        print_json(outcome)
        return
    if outcome.already_registered:
        remark = f"tuning {tuning.serving} stored" if tuning else "tuning removed"
        nothing = "it was out of the engine and is back" if outcome.restored else "nothing to do"
        todo = f"{remark}, in force at its next load" if outcome.retuned else nothing
        print_line(
            f"{outcome.model} {outcome.version} was registered before, from the same bytes: "
            f"{todo}, it is {outcome.state}"
        )
        return
    place = f" on {outcome.engine}" if engine else ""
    print_line(f"{outcome.model} {outcome.version} is {outcome.state}{place}")
    if outcome.signer:
        print_line(f"signed by {outcome.signer}")
    if outcome.untuned:
        print_line(f"could not be loaded as tuned, so its tuning was dropped: {outcome.untuned}")
    elif tuning is not None:
        print_line(f"served as tuned: {tuning.serving}")
    print_line(f"next: vlserve release {outcome.model} {outcome.version}")


def sign(
    archive: ArchiveFile,
    key: Annotated[Path, file_option(KEY_HELP)],
    as_json: AsJson = False,
) -> None:
    """Sign an archive, whose bytes do not change, and write its provenance and its components.

    Beside it: ARCHIVE.sigstore.json, ARCHIVE.provenance.sigstore.json and ARCHIVE.cdx.json.
    `vlserve register` sends the first two along.
    """
    from vlserve.signing.archives import sign_archive
    from vlserve.signing.keys import read_private_key

    result = sign_archive(archive, read_private_key(key))
    if as_json:
        print_json(result)
        return
    for file in result.written:
        print_line(f"wrote {file}")
    print_line(f"signed with the key {result.key[:12]}…; next: vlserve register {archive}")


def unload(model: Model, version: Version, as_json: AsJson = False) -> None:
    """Drain a version that has no weight and unload it from the engine; its archive stays."""
    with control_client() as control, progress(f"unloading {model} {version}"):
        outcome = control.unload(model, version)
    if as_json:
        print_json(outcome)
        return
    print_line(f"{model} {outcome.version} is {outcome.state}")


def delete(model: Model, version: Version, as_json: AsJson = False) -> None:
    """Remove the archive of a retired or failed version from the model store.

    The number stays taken; to register the same archive again puts the version back.
    """
    with control_client() as control:
        outcome = control.delete(model, version)
    if as_json:
        print_json(outcome)
        return
    remark = (
        f"{outcome.freed_bytes / 1024**2:.1f} MiB are free"
        if outcome.freed_bytes
        else "it was gone"
    )
    print_line(f"{model} {outcome.version} is {outcome.state}: {remark}; its number stays taken")
    back = f"goes to {outcome.rollback_to}" if outcome.rollback_to else "has nowhere to go"
    print_line(f"a rollback of {model} {back}")


def history(model: Model, as_json: AsJson = False) -> None:
    """List everything that happened to a model, oldest first."""
    with control_client() as control:
        events = control.history(model)
    if as_json:
        print_json(events)
        return
    rows = [(e.at[:19], e.version, e.kind, _detail(e.detail)) for e in events]
    print_table(("AT", "VERSION", "EVENT", "DETAIL"), rows)


def _detail(detail: Mapping[str, Any]) -> str:
    """Return an event's details without the gates' figures, which only --json prints."""
    fields = {key: value for key, value in detail.items() if key != "gates"}
    return " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def add_to(app: typer.Typer) -> None:
    for command in (sign, register, unload, delete, history):
        app.command(rich_help_panel=Group.VERSIONS)(command)
