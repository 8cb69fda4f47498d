"""Writes an archive: the same inputs give the same bytes, on any machine.

Members are stored, not deflated: the bytes do not depend on the zlib that happens to be installed,
and Java unzips 48 MB of weights in a third of the time, for 8 % more bytes.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vlserve
import vlserve.runtime
from vlserve.errors import ExportError
from vlserve.project import Folder, packaged_dir
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import (
    CAPABILITIES,
    HANDLER,
    MANIFEST,
    TORCHSERVE_MANIFEST,
    TRITON_MODEL,
    Manifest,
    read_manifest,
)

Member = Path | bytes
"""The content of one archive member: a file to copy, or the bytes themselves."""

HANDLERS_DIR = packaged_dir() / "handlers"
"""The packaged task files and engine entry points."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def archive_name(model: str, version: int) -> str:
    """Return the one file name of a version; engines tell archives apart by it."""
    return f"{model}-{version}.mar"


def pack_archive(
    out_dir: Path,
    draft: Mapping[str, Any],
    members: Mapping[str, Member],
    handlers: Folder = HANDLERS_DIR,
) -> Path:
    """Write ``<model>-<version>.mar`` into ``out_dir`` and return its path.

    ``draft``: every field of `Manifest` but ``files``. ``members``: the graphs and assets by their
    path in the archive. The frozen runtime, the task's handler file and the engines' entry points
    are added. Raises ManifestInvalid for a draft that contradicts itself or the members,
    ExportError for a file that is missing. An archive of that name is replaced in one step.
    """
    return pack_members(
        out_dir, draft, dict(members) | frozen_code(str(draft.get("task")), handlers)
    )


def pack_members(out_dir: Path, draft: Mapping[str, Any], members: Mapping[str, Member]) -> Path:
    """Pack as `pack_archive`, of ``members`` that hold the code already, as those of another
    archive.

    The manifest says the capabilities of the runtime among them: this checkout's, or what the draft
    says of another one.
    """
    everything = dict(members)
    everything[TORCHSERVE_MANIFEST] = _torchserve_manifest(draft)
    files = {name: _sha256(content) for name, content in sorted(everything.items())}
    own_fields = {"capabilities": CAPABILITIES} if _is_our_runtime(files) else {}
    manifest = read_manifest(_json({**draft, **own_fields, "files": files}))
    everything[MANIFEST] = _json(_fields_of(manifest))
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / archive_name(manifest.model, manifest.version)
    write_zip(path, everything)
    return path


def draft_of(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as a draft again, to pack its archive anew with something changed."""
    fields = _fields_of(manifest)
    del fields["files"]
    return fields


def _fields_of(manifest: Manifest) -> dict[str, Any]:
    """Return what manifest.json says. What came after the first runtimes of format 1, and says
    nothing, is left out: an archive that is packed anew keeps its old runtime, which refuses what
    it does not know."""
    fields = manifest.model_dump(mode="json", exclude={"quantization"})
    if manifest.capabilities is None:
        del fields["capabilities"]
    if manifest.adopted is None:
        del fields["adopted"]
    if manifest.training is None:
        del fields["training"]
    if manifest.text is not None and manifest.text.cleaning is None:
        del fields["text"]["cleaning"]
    if manifest.text is not None and manifest.text.too_long == "cut":
        del fields["text"]["too_long"]
    if manifest.quantization is not None:
        quantization = manifest.quantization.model_dump(mode="json", exclude_none=True)
        fields["quantization"] = quantization
    return fields


def has_our_runtime(manifest: Manifest) -> bool:
    """Return whether the runtime that is frozen in an archive is this checkout's, to the byte."""
    return _is_our_runtime(manifest.files)


def _is_our_runtime(files: Mapping[str, str]) -> bool:
    theirs = {name: digest for name, digest in files.items() if name.startswith("vlserve/")}
    return theirs == {name: _sha256(file) for name, file in _runtime().items()}


def frozen_code(task: str, handlers: Folder = HANDLERS_DIR) -> dict[str, Member]:
    """Return the code that travels in an archive of ``task``, by its path there."""
    code: dict[str, Member] = dict(_runtime())
    code[f"handlers/{task}.py"] = handlers / f"{task}.py"
    code |= {name: handlers / name for name in (HANDLER, TRITON_MODEL)}
    for name, content in code.items():
        if isinstance(content, Path) and not content.is_file():
            raise ExportError(f"no {name} to pack: {content} does not exist")
    return code


def _runtime() -> dict[str, Path]:
    runtime = Path(vlserve.runtime.__file__).parent
    files = {f"vlserve/runtime/{file.name}": file for file in sorted(runtime.glob("*.py"))}
    return {"vlserve/__init__.py": Path(vlserve.__file__), **files}


def write_zip(path: Path, members: Mapping[str, Member]) -> None:
    """Write members, sorted by name, with fixed times and permissions; ``path`` appears whole."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, content in sorted(members.items()):
                    _write_member(archive, name, content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _write_member(archive: zipfile.ZipFile, name: str, content: Member) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, wherever this runs, or the permissions mean nothing
    info.external_attr = 0o100644 << 16
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return
    info.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(info, "w") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _torchserve_manifest(draft: Mapping[str, Any]) -> bytes:
    return _json(
        {
            "runtime": "python",
            "archiverVersion": "0.12.0",
            "model": {
                "modelName": draft.get("model"),
                "modelVersion": str(draft.get("version")),
                "handler": HANDLER,
            },
        }
    )


def _sha256(content: Member) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return file_sha256(content)


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
    return text.encode() + b"\n"
