"""One archive adopted: read, checked, packed, asked for its probes."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlserve.adopt.checks import (
    ONE_AT_A_TIME,
    Allowed,
    check_code,
    check_envelope,
    check_runtime,
    check_weights,
)
from vlserve.adopt.legacy_archive import LegacyArchive, open_legacy
from vlserve.adopt.model_config import ModelConfig, from_entries, read_model_config
from vlserve.adopt.recording import Recorded, bare, recorded_by_itself, recorded_from
from vlserve.adopt.requests import read_calls
from vlserve.adopt.server_settings import ServerSettings, read_server_settings
from vlserve.errors import NotAdopted
from vlserve.exporter.pack import HANDLERS_DIR, Member, pack_archive
from vlserve.project import Folder
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import LEGACY, TORCHSERVE_MANIFEST, Adopted, Probe

TASK, FAMILY = "adopted", "torchserve"
TORCHSERVES_DELAY_MS = 100
_NO_NAME = re.compile(r"[^a-z0-9_-]+")


@dataclass(frozen=True)
class Wishes:
    """What the command line says; None: the archive and the server's settings decide."""

    name: str | None = None
    version: int | None = None
    batch_size: int | None = None
    handler: str | None = None
    envelope: str | None = None
    server_settings: Path | None = None
    requests: Path | None = None
    record: str | None = None
    isolates: bool = True
    allowed: Allowed = field(default_factory=Allowed)


@dataclass(frozen=True)
class Adoption:
    """What was made. ``code``: name -> sha256 of the .py files, which run with the worker's
    rights."""

    archive: Path
    model: str
    version: int
    adopted: Adopted
    code: dict[str, str]
    probes: int
    warnings: tuple[str, ...]


def adopt(
    path: Path,
    out: Path,
    wishes: Wishes,
    handlers: Folder = HANDLERS_DIR,
    show: Callable[[str], None] = lambda line: None,
) -> Adoption:
    """Write an archive of ours into ``out`` that holds the one at ``path`` and its handler.

    Raises:
        NotAdopted: says why it cannot be.
        ArchiveError: it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="vlserve-adopt-") as scratch:
        legacy = open_legacy(path, Path(scratch) / "legacy")
        origin, warnings = described(legacy, wishes)
        model, version = _model_name(origin.name, wishes), _version(origin.version, wishes)
        draft = {"model": model, "version": version, "task": TASK, "family": FAMILY, "graphs": {}}
        members = _members(legacy, origin)
        calls = read_calls(wishes.requests)
        predictions = f"/predictions/{origin.name}"
        trial = pack_archive(
            Path(scratch) / "trial", draft | {"adopted": origin.model_dump()}, members, handlers
        )
        show("asking the handler")
        recording = recorded_by_itself(trial, calls, predictions)
        if wishes.record:
            show(f"asking {bare(wishes.record)}")
            recording, own = recorded_from(wishes.record, calls), recording
            warnings += tuple(_differences(recording, own))
            origin = origin.model_copy(update={"recorded_from": bare(wishes.record)})
        probes = [
            Probe(fields=call.fields(predictions), answer=dict(answer)).model_dump()
            for call, answer in recording
        ]
        draft |= {"adopted": origin.model_dump(), "probes": probes}
        archive = pack_archive(out, draft, members, handlers)
        return Adoption(
            archive, model, version, origin, _code(legacy), len(probes), tuple(warnings)
        )


def described(legacy: LegacyArchive, wishes: Wishes) -> tuple[Adopted, tuple[str, ...]]:
    """Return how the handler is called, once everything that can be read is checked."""
    file = wishes.server_settings
    server = read_server_settings(file) if file else ServerSettings()
    name = str(legacy.model.get("modelName") or "")
    number = str(legacy.model.get("modelVersion") or "1.0")
    handler = wishes.handler or str(legacy.model.get("handler") or "")
    if not name or not handler:
        raise NotAdopted(
            f"{legacy.called} does not say its {'handler' if name else 'model name'}: give "
            "--handler, as torch-model-archiver was told"
        )
    envelope = wishes.envelope or server.envelope
    check_runtime(legacy, handler)
    check_envelope(legacy, envelope)
    config, of_server = _config_of(legacy), from_entries(server.of(name, number))
    check_weights(legacy, wishes.allowed)
    findings = check_code(legacy, handler, wishes.allowed)
    numbers = _numbers(config, of_server, wishes)
    warnings = [*findings.warnings, *_passed_over(legacy, envelope, config, of_server)]
    if envelope in ONE_AT_A_TIME and (numbers.batch_size or 1) > 1:
        warnings.append(f"envelope {envelope} reads one request of a batch: its batch size is 1")
        numbers = replace(numbers, batch_size=1)
    origin = Adopted(
        name=name,
        version=number,
        sha256=legacy.sha256,
        handler=handler,
        envelope=envelope,
        batch_size=numbers.batch_size or 1,
        max_batch_delay_ms=numbers.max_batch_delay_ms or TORCHSERVES_DELAY_MS,
        workers=numbers.workers,
        response_timeout_s=numbers.response_timeout_s or server.response_timeout_s,
        startup_timeout_s=numbers.startup_timeout_s,
        decodes=server.decodes,
        limits_pixels=server.limits_pixels,
        isolates=wishes.isolates,
        joins_pieces=wishes.allowed.whole,
        describes=findings.describes,
    )
    return origin, tuple(warnings)


def _config_of(legacy: LegacyArchive) -> ModelConfig:
    file = legacy.model.get("configFile")
    return read_model_config(legacy.folder / str(file), legacy.called) if file else ModelConfig()


def _passed_over(
    legacy: LegacyArchive, envelope: str | None, config: ModelConfig, of_server: ModelConfig
) -> Iterator[str]:
    """Yield what the archive or its server says and nobody takes: TorchServe, or vlserve."""
    for wrong, right in config.misspelt:
        yield f"{legacy.called}: TorchServe passes over {wrong} in its configuration: it is {right}"
    if legacy.model.get("envelope") and not envelope:
        yield (
            f"{legacy.called}: TorchServe passes over the envelope {legacy.model['envelope']} in "
            "its manifest: --envelope takes it"
        )
    for entry, why in dict((*config.dropped, *of_server.dropped)).items():
        yield f"{legacy.called}: {entry} is not taken: {why}"


def _numbers(config: ModelConfig, server: ModelConfig, wishes: Wishes) -> ModelConfig:
    """Return what counts: the command line, then the server's settings, then the archive's own."""
    return replace(
        config,
        workers=server.workers or config.workers,
        batch_size=wishes.batch_size or server.batch_size or config.batch_size,
        max_batch_delay_ms=server.max_batch_delay_ms or config.max_batch_delay_ms,
        response_timeout_s=server.response_timeout_s or config.response_timeout_s,
        startup_timeout_s=server.startup_timeout_s or config.startup_timeout_s,
    )


def _model_name(former: str, wishes: Wishes) -> str:
    """Return the model's name: the one that is wished, else the former one in our letters."""
    if wishes.name:
        return wishes.name
    name = _NO_NAME.sub("-", former.lower()).strip("-_")[:63]
    return name if name[:1].isalpha() else f"m-{name}"[:63]


def _version(former: str, wishes: Wishes) -> int:
    """Return the version's number: the one that is wished, else the first number of the former."""
    if wishes.version:
        return wishes.version
    match = re.match(r"\d{1,9}", former)
    return max(1, int(match[0])) if match else 1


def _members(legacy: LegacyArchive, origin: Adopted) -> dict[str, Member]:
    """Return all files of the archive as they are, and its manifest where it has none."""
    members: dict[str, Member] = {
        f"{LEGACY}/{legacy.name_of(file)}": file
        for file in legacy.files()
        if "__pycache__" not in file.parts
    }
    if not legacy.has_manifest:
        model = legacy.model | {"handler": origin.handler}
        manifest: dict[str, Any] = legacy.manifest | {"model": model}
        members[f"{LEGACY}/{TORCHSERVE_MANIFEST}"] = json.dumps(manifest, indent=2).encode()
    return members


def _code(legacy: LegacyArchive) -> dict[str, str]:
    return {
        legacy.name_of(file): file_sha256(file) for file in legacy.files() if file.suffix == ".py"
    }


def _differences(recording: Recorded, own: Recorded) -> list[str]:
    return [
        f"{call.called} is answered otherwise here than by the server it was recorded from: the "
        "version will not pass its probes"
        for (call, theirs), (_, ours) in zip(recording, own, strict=True)
        if theirs != ours
    ]
