"""An archive of torch-model-archiver, laid out in a folder: a .mar, a .tgz or a folder."""

import hashlib
import json
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import NotAdopted
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import MANIFEST, TORCHSERVE_MANIFEST
from vlserve.runtime.zip_layout import (
    MAX_MEMBERS,
    check_unpacked_size,
    read_chunks,
    read_layout,
)

MAX_MANIFEST_BYTES = 1024**2
_NOT_TAKEN = ("__pycache__", ".git")


@dataclass(frozen=True)
class LegacyArchive:
    """``called``: its file's name. ``folder``: where its files lie. ``manifest``: TorchServe's;
    what the archive lacks of it is filled in. ``has_manifest``: whether it has any."""

    called: str
    folder: Path
    sha256: str
    manifest: dict[str, Any]
    has_manifest: bool = True

    @property
    def model(self) -> dict[str, Any]:
        """What the manifest says of the model."""
        return dict(self.manifest["model"])

    def files(self) -> Iterator[Path]:
        """Yield its files, sorted by their names."""
        return (path for path in sorted(self.folder.rglob("*")) if path.is_file())

    def name_of(self, file: Path) -> str:
        """Return a file's name in the archive."""
        return file.relative_to(self.folder).as_posix()


def open_legacy(path: Path, folder: Path) -> LegacyArchive:
    """Lay the archive at ``path`` out in ``folder``, which is made.

    Raises:
        NotAdopted: it is no archive of torch-model-archiver, or not one of Python.
        ArchiveError: it cannot be read, or is over a limit.
    """
    if path.is_dir():
        _copy_folder(path, folder)
    elif tarfile.is_tarfile(path):
        _unpack_tar(path, folder)
    else:
        _unpack_zip(path, folder)
    if (folder / MANIFEST).is_file() and (folder / "vlserve").is_dir():
        raise NotAdopted(f"{path.name} is one of vlserve's already: `vlserve register {path}`")
    sha256 = file_sha256(path) if path.is_file() else _sha256_of(folder)
    manifest, has_manifest = _manifest(path, folder)
    return LegacyArchive(path.name, folder, sha256, manifest, has_manifest)


def _copy_folder(path: Path, folder: Path) -> None:
    for number, file in enumerate(path.rglob("*")):
        if number >= MAX_MEMBERS:
            raise NotAdopted(f"{path.name} holds more than {MAX_MEMBERS} files")
        if file.is_symlink():
            raise NotAdopted(f"{path.name}: {file.name} is a link: put the file itself there")
        if not (file.is_file() or file.is_dir()):
            raise NotAdopted(f"{path.name}: {file.name} is neither a file nor a folder")
    shutil.copytree(path, folder, ignore=shutil.ignore_patterns(*_NOT_TAKEN))


def _unpack_zip(path: Path, folder: Path) -> None:
    with path.open("rb") as file:
        members = read_layout(file, path.name)
        for name, member in members.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                out.writelines(read_chunks(file, member, path.name))


def _unpack_tar(path: Path, folder: Path) -> None:
    """Unpack a .tgz, whose one root folder, where it has one, is the archive."""
    length = path.stat().st_size
    folder.mkdir(parents=True)
    try:
        with tarfile.open(path) as archive:
            total = 0
            for number, member in enumerate(archive):
                total += member.size
                check_unpacked_size(total, length, path.name)
                if number >= MAX_MEMBERS:
                    raise NotAdopted(f"{path.name} holds more than {MAX_MEMBERS} files")
                if not (member.isfile() or member.isdir()):
                    raise NotAdopted(f"{path.name}: {member.name} is neither a file nor a folder")
                archive.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise NotAdopted(f"{path.name} cannot be unpacked: {error}") from error
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name != "MAR-INF":
        for entry in list(entries[0].iterdir()):
            shutil.move(entry, folder)
        entries[0].rmdir()


def _sha256_of(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return total.hexdigest()


def _manifest(path: Path, folder: Path) -> tuple[dict[str, Any], bool]:
    file = folder / TORCHSERVE_MANIFEST
    if not file.is_file():
        name = path.name.removesuffix(".tar.gz").removesuffix(".tgz").removesuffix(".mar")
        model: dict[str, Any] = {"modelName": name, "modelVersion": "1.0"}
        return {"runtime": "python", "model": model}, False
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise NotAdopted(
            f"{path.name}: {TORCHSERVE_MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotAdopted(f"{path.name}: {TORCHSERVE_MANIFEST} cannot be read: {error}") from error
    if isinstance(manifest, dict) and "workflow" in manifest:
        raise NotAdopted(
            f"{path.name} is a workflow: adopt its .mar files one by one; chain them in the client"
        )
    if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), dict):
        raise NotAdopted(f"{path.name}: {TORCHSERVE_MANIFEST} names no model")
    return manifest, True
