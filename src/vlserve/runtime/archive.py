"""The archive as a file: what is wrong with it, and its members on disk.

An archive is a zip that TorchServe loads as it is; vlserve.runtime.manifest draws its layout.
Nothing here runs code of an archive, and nothing imports torch or onnxruntime, so that the control
service can judge an archive before it trusts it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vlserve.runtime.errors import (
    ArchiveTampered,
    ArchiveTooLarge,
    ArchiveUnreadable,
    ManifestInvalid,
)
from vlserve.runtime.graphs import check_onnx
from vlserve.runtime.manifest import (
    HANDLER,
    LEGACY,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    TORCHSERVE_MANIFEST,
    Manifest,
    read_manifest,
)
from vlserve.runtime.zip_layout import CHUNK_BYTES, Member, read_chunks, read_layout

MAX_TORCHSERVE_MANIFEST_BYTES = 64 * 1024
_RUNTIME = "python"
_ABOUT_ITSELF = frozenset({"runtime", "archiverVersion", "createTime", "description"})
"""What TorchServe's manifest may say besides the model."""
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_MAX_NAMED = 10
"""How many members an error names; it counts the rest."""

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
    with _opened(path, called or str(path)) as archive:
        manifest = read_manifest(archive.read(MANIFEST, MAX_MANIFEST_BYTES))
        _check_members(manifest, set(archive.members), archive.where)
        for name, expected in manifest.files.items():
            _check_hash(name, archive.chunks(name), expected)
        engines = archive.read(TORCHSERVE_MANIFEST, MAX_TORCHSERVE_MANIFEST_BYTES)
        _check_torchserve_manifest(engines, manifest)
        for graph in manifest.graphs.values():
            if graph.format == "onnx":
                check_onnx(graph, archive.chunks(graph.file), manifest.files)
    return manifest


def manifest_of(path: Path) -> Manifest:
    """Return the manifest of an archive whose other members nobody looks at.

    Raises ArchiveUnreadable, ArchiveTooLarge, ArchiveTampered or ManifestInvalid.
    """
    with _opened(path, str(path)) as archive:
        return read_manifest(archive.read(MANIFEST, MAX_MANIFEST_BYTES))


def unpack_archive(path: Path, folder: Path) -> Manifest:
    """Verify ``path`` and lay its members out in ``folder``, which must be empty or absent."""
    manifest = verify_archive(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ArchiveUnreadable(f"{folder} is not empty: unpack {path.name} into a new folder")
    with _opened(path, str(path)) as archive:
        for name in archive.members:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(archive.chunks(name))
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


@dataclass(frozen=True)
class _Archive:
    """An open archive. ``where`` is what errors call it."""

    file: IO[bytes]
    members: Mapping[str, Member]
    where: str

    def chunks(self, name: str) -> Iterator[bytes]:
        return read_chunks(self.file, self.members[name], self.where)

    def read(self, name: str, max_bytes: int) -> bytes:
        """A whole member. ArchiveTooLarge where it says that it is larger."""
        size_bytes = self.members[name].size_bytes
        if size_bytes > max_bytes:
            raise ArchiveTooLarge(
                f"{self.where}: {name} has {size_bytes} bytes, more than {max_bytes}"
            )
        return b"".join(self.chunks(name))


@contextmanager
def _opened(path: Path, where: str) -> Iterator[_Archive]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ArchiveUnreadable(f"no archive at {path}") from None
    except OSError as error:
        raise ArchiveUnreadable(f"{where} is not a readable archive: {error}") from error
    with file:
        members = read_layout(file, where)
        if MANIFEST not in members:
            raise ArchiveUnreadable(_without_manifest(where, members))
        yield _Archive(file, members, where)


def _without_manifest(where: str, members: Iterable[str]) -> str:
    """Return what to do with a zip that `vlserve export` did not write."""
    if TORCHSERVE_MANIFEST not in members:
        return f"{where} has no {MANIFEST}: pack it with `vlserve export`"
    weights = sorted(name for name in members if PurePosixPath(name).suffix in _WEIGHTS)
    names = ", ".join(weights[:_MAX_NAMED]) or "not among its files"
    return (
        f"{where} has no {MANIFEST}: it is an archive of torch-model-archiver, which TorchServe "
        "serves by a handler of its own. `vlserve adopt` makes it one to register, handler and all "
        f"(weights: {names})"
    )


def _check_members(manifest: Manifest, present: set[str], where: str) -> None:
    expected = set(manifest.files) | {MANIFEST}
    for wrong, how in (
        (expected - present, "missing"),
        (present - expected, "not in the manifest"),
    ):
        if wrong:
            names = sorted(wrong)[:_MAX_NAMED]
            more = f" and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
            raise ArchiveTampered(f"{where}: {', '.join(names)}{more}: {how}")
    torchscript = {
        graph.file for graph in manifest.graphs.values() if graph.format == "torchscript"
    }
    # Workers of adopted archives refuse what runs code as it is read (runtime/legacy_handler.py).
    legacy_files = {name for name in expected if manifest.adopted and name.startswith(f"{LEGACY}/")}
    for name in sorted(expected - torchscript - legacy_files):
        if PurePosixPath(name).suffix.lower() in EXECUTABLE_SUFFIXES:
            raise ArchiveTampered(f"{where}: {name} can run code when loaded: leave it out")


def _check_hash(name: str, chunks: Iterable[bytes], expected: str) -> None:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    actual = digest.hexdigest()
    if actual != expected:
        raise ArchiveTampered(
            f"{name} is not the file that was packed: sha256 {actual[:12]}…, "
            f"the manifest lists {expected[:12]}…"
        )


def _check_torchserve_manifest(raw: bytes, manifest: Manifest) -> None:
    """What TorchServe will call the version must be what our manifest calls it, and nothing else
    may be said: requirements to install, a configuration that overrides ours, another runtime than
    Python. It is UTF-8, as Java takes it for; Python would find out other encodings."""
    try:
        content = json.loads(raw.decode(), object_pairs_hook=without_repeats)
        model, others = dict(content["model"]), content.keys() - {"model"}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestInvalid(f"{TORCHSERVE_MANIFEST} cannot be read: {error!r}") from error
    expected = {
        "modelName": manifest.model,
        "modelVersion": str(manifest.version),
        "handler": HANDLER,
    }
    wrong = [
        f"{key} is {model.get(key)!r}, {MANIFEST} says {expected[key]!r}"
        for key in expected
        if model.get(key) != expected[key]
    ]
    if content.get("runtime", _RUNTIME) != _RUNTIME:
        wrong.append(f"runtime is {content['runtime']!r}, not {_RUNTIME!r}")
    extra_keys = {*(model.keys() - expected), *(others - _ABOUT_ITSELF)}
    wrong += [f"{key} is not for it to say" for key in sorted(extra_keys)]
    if wrong:
        raise ManifestInvalid(f"{TORCHSERVE_MANIFEST}: {'; '.join(wrong)}")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, once no key is there twice, of which each parser takes another."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result
