"""The archive as a file: what is wrong with it, and its members on disk.

An archive is a zip that TorchServe loads as it is; vlserve.runtime.manifest draws its layout.
Nothing here runs code of an archive, and nothing imports torch or onnxruntime, so that the control
service can judge an archive before it trusts it.
"""

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from vlserve.runtime.errors import ArchiveTampered, ArchiveUnreadable, ManifestInvalid
from vlserve.runtime.graphs import check_onnx
from vlserve.runtime.manifest import (
    HANDLER,
    MANIFEST,
    TORCHSERVE_MANIFEST,
    Manifest,
    read_manifest,
)

CHUNK_BYTES = 1024**2
MAX_UNPACKED_BYTES = 16 * 1024**3
MAX_MEMBERS = 10_000
MAX_MANIFEST_BYTES = 64 * 1024**2

EXECUTABLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".pyc"})
"""Files that can run code when they are loaded; a TorchScript graph is the one exception."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_archive(path: Path, called: str = "") -> Manifest:
    """Check everything that can be checked without running the archive.

    Raises ArchiveUnreadable, ManifestInvalid or ArchiveTampered, each saying which member and why.
    ``called``: the file's name for those who read the error, where its path says nothing to them.
    """
    where = called or str(path)
    with _open_zip(path, where) as archive:
        names = _safe_names(archive, where)
        manifest = _read_manifest(archive, names, where)
        _check_members(manifest, names, where)
        for name, expected in manifest.files.items():
            _check_hash(name, _chunks(archive, name, where), expected)
        _check_torchserve_manifest(_read(archive, TORCHSERVE_MANIFEST, where), manifest)
        for graph in manifest.graphs.values():
            if graph.format == "onnx":
                check_onnx(graph, _read(archive, graph.file, where), manifest.files)
    return manifest


def unpack_archive(path: Path, folder: Path) -> Manifest:
    """Verify ``path`` and lay its members out in ``folder``, which must be empty or absent."""
    manifest = verify_archive(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ArchiveUnreadable(f"{folder} is not empty: unpack {path.name} into a new folder")
    with _open_zip(path, str(path)) as archive:
        for name in (MANIFEST, *manifest.files):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(_chunks(archive, name, str(path)))
    return manifest


def check_folder(folder: Path) -> Manifest:
    """The manifest of an unpacked archive, once every file in it has the listed bytes.

    Python's own ``__pycache__`` is no member and is passed over.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ArchiveUnreadable(f"{folder} has no {MANIFEST}: it is not an unpacked archive")
    manifest = read_manifest(file.read_bytes())
    present = {
        member.relative_to(folder).as_posix()
        for member in folder.rglob("*")
        if not member.is_dir() and "__pycache__" not in member.parts
    }
    _check_members(manifest, present, str(folder))
    for name, expected in manifest.files.items():
        with (folder / name).open("rb") as member:
            _check_hash(name, iter(lambda: member.read(CHUNK_BYTES), b""), expected)
    return manifest


@contextmanager
def _open_zip(path: Path, where: str) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise ArchiveUnreadable(f"no archive at {path}") from None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ArchiveUnreadable(f"{where} is not a readable archive: {error}") from error
    with archive:
        yield archive


def _chunks(archive: zipfile.ZipFile, name: str, where: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as member:
            while chunk := member.read(CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError: encrypted; NotImplementedError, its child: an unknown compression
        raise ArchiveUnreadable(f"{where}: member {name} cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    return b"".join(_chunks(archive, name, where))


def _safe_names(archive: zipfile.ZipFile, where: str) -> set[str]:
    """Member names, once none of them could write outside a folder or fill the disk."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ArchiveUnreadable(f"{where} has {len(members)} members, more than {MAX_MEMBERS}")
    size_bytes = sum(member.file_size for member in members)
    if size_bytes > MAX_UNPACKED_BYTES:
        raise ArchiveUnreadable(
            f"{where} unpacks to {size_bytes} bytes, more than {MAX_UNPACKED_BYTES}"
        )
    names: set[str] = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise ArchiveTampered(f"{where}: member name {name!r} could leave its folder")
        if not name.isprintable():
            raise ArchiveTampered(f"{where}: member name {name!r} cannot be printed")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ArchiveTampered(f"{where}: member {name} is a symbolic link")
        if name in names:
            raise ArchiveTampered(f"{where}: member {name} is there twice")
        names.add(name)
    return names


def _read_manifest(archive: zipfile.ZipFile, names: set[str], where: str) -> Manifest:
    if MANIFEST not in names:
        raise ArchiveUnreadable(f"{where} has no {MANIFEST}: pack it with `vlserve export`")
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{where}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    return read_manifest(_read(archive, MANIFEST, where))


def _check_members(manifest: Manifest, present: set[str], where: str) -> None:
    listed = set(manifest.files) | {MANIFEST}
    for wrong, how in ((listed - present, "missing"), (present - listed, "not in the manifest")):
        if wrong:
            raise ArchiveTampered(f"{where}: {', '.join(sorted(wrong))}: {how}")
    torchscript = {
        graph.file for graph in manifest.graphs.values() if graph.format == "torchscript"
    }
    for name in sorted(listed - torchscript):
        if PurePosixPath(name).suffix in EXECUTABLE_SUFFIXES:
            raise ArchiveTampered(f"{where}: {name} can run code when loaded: leave it out")


def _check_hash(name: str, chunks: Iterable[bytes], expected: str) -> None:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    got = digest.hexdigest()
    if got != expected:
        raise ArchiveTampered(
            f"{name} is not the file that was packed: sha256 {got[:12]}…, "
            f"the manifest lists {expected[:12]}…"
        )


def _check_torchserve_manifest(raw: bytes, manifest: Manifest) -> None:
    """What TorchServe will call the version must be what our manifest calls it."""
    try:
        model: Mapping[str, Any] = json.loads(raw)["model"]
        said = {key: model.get(key) for key in ("modelName", "modelVersion", "handler")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestInvalid(f"{TORCHSERVE_MANIFEST} cannot be read: {error!r}") from error
    expected = {
        "modelName": manifest.model,
        "modelVersion": str(manifest.version),
        "handler": HANDLER,
    }
    wrong = [
        f"{key} is {said[key]!r}, {MANIFEST} says {expected[key]!r}"
        for key in expected
        if said[key] != expected[key]
    ]
    if wrong:
        raise ManifestInvalid(f"{TORCHSERVE_MANIFEST}: {'; '.join(wrong)}")
