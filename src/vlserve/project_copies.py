"""A project's copies of the packaged files: written by `vlserve init`, renewed by `vlserve up`.

The marker file of a project notes the sha256 of each packaged file that was copied. So a later
version of the package can tell a copy that nobody edited, which it replaces, from an edited one,
which it names.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vlserve.errors import SettingsError
from vlserve.project import FOLDERS, MARKER, is_checkout, packaged_dir
from vlserve.runtime.errors import wrong_fields


class Marker(BaseModel):
    """The content of the marker file."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    vlserve: str
    """Version of the package that last wrote this file."""
    files: dict[str, str]
    """Path inside the project -> sha256 of the packaged file that was copied there."""


@dataclass(frozen=True)
class Written:
    """What `write_copies` did: paths inside the project, sorted."""

    folder: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that existed before, and were not touched."""


@dataclass(frozen=True)
class Renewed:
    """What `renew_copies` did: paths inside the project, sorted."""

    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Copies that nobody edited, of files that the package no longer brings."""
    edited: tuple[str, ...] = ()
    """Copies that were edited, and whose packaged file has changed since they were made."""


def write_copies(folder: Path, version: str, sources_dir: Path | None = None) -> Written:
    """Make ``folder`` a project: copy every packaged file that it lacks, and write its marker.

    Args:
        folder: The project folder; it is made when it does not exist.
        version: The version of the package, for the marker.
        sources_dir: The folder of the packaged files; by default, the installed ones.

    Raises:
        SettingsError: ``folder`` is a checkout of vlserve, whose files are the packaged ones, or
            its marker file cannot be read.
    """
    if is_checkout(folder):
        raise SettingsError(
            f"{folder} is a checkout of vlserve and needs no `vlserve init`: its own files are used"
        )
    sources = packaged_files(sources_dir or packaged_dir())
    missing_names = [name for name in sources if not (folder / name).exists()]
    earlier = read_marker(folder)
    for name in missing_names:
        _copy(sources[name], folder / name)
    hashes = {name: file_hash(source) for name, source in sources.items()}
    # an older version's copy that nobody edited is still `up`'s to replace
    earlier_hashes = {
        name: hash_
        for name, hash_ in (earlier.files if earlier else {}).items()
        if (folder / name).is_file() and file_hash(folder / name) == hash_
    }
    _write_marker(folder, Marker(vlserve=version, files=hashes | earlier_hashes))
    return Written(
        folder, tuple(missing_names), tuple(name for name in sources if name not in missing_names)
    )


def renew_copies(folder: Path, version: str, sources_dir: Path | None = None) -> Renewed:
    """Bring the copies in a project up to the installed package; nothing is done in a folder that
    `vlserve init` did not make.

    A copy that equals what was copied is replaced, or removed where its packaged file is gone. A
    copy that was edited stays, and is named until `vlserve init` is run again in the folder. A copy
    that was deleted stays deleted: the packaged file is used.

    Raises:
        SettingsError: The marker file cannot be read.
    """
    marker = read_marker(folder)
    if marker is None:
        return Renewed()
    sources = packaged_files(sources_dir or packaged_dir())
    hashes = {name: file_hash(source) for name, source in sources.items()}
    fates = dict(_fates(folder, marker.files, hashes))
    for name, fate in fates.items():
        if fate == "replaced":
            _copy(sources[name], folder / name)
        elif fate == "removed":
            (folder / name).unlink()
    edited_hashes = {name: marker.files[name] for name, fate in fates.items() if fate == "edited"}
    new_marker = Marker(vlserve=version, files=hashes | edited_hashes)
    if new_marker != marker:
        _write_marker(folder, new_marker)
    by_fate = {
        kind: tuple(name for name, fate in fates.items() if fate == kind)
        for kind in ("replaced", "removed", "edited")
    }
    return Renewed(**by_fate)


def read_marker(folder: Path) -> Marker | None:
    """Return the folder's marker; None where `vlserve init` did not make the folder.

    Raises:
        SettingsError: The marker cannot be read, or is of a newer package.
    """
    file = folder / MARKER
    try:
        return Marker.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SettingsError(
            f"{file} cannot be read ({wrong_fields(error, 'marker')}): "
            "remove it and run `vlserve init` again, which overwrites no file"
        ) from error


def packaged_files(sources_dir: Path) -> dict[str, Path]:
    """Return every packaged file that users edit, by its path inside a project, sorted."""
    files = (
        file
        for name in FOLDERS
        for file in (sources_dir / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    )
    return {file.relative_to(sources_dir).as_posix(): file for file in sorted(files)}


def file_hash(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _fates(
    folder: Path, copy_hashes: Mapping[str, str], source_hashes: Mapping[str, str]
) -> Iterator[tuple[str, Literal["replaced", "removed", "edited"]]]:
    """Yield what happens to each copy whose packaged file has changed since it was made."""
    for name in sorted(copy_hashes):
        file, new = folder / name, source_hashes.get(name)
        if new == copy_hashes[name] or not file.is_file():
            continue
        present = file_hash(file)
        if present == copy_hashes[name]:
            yield name, "replaced" if new else "removed"
        elif present != new:
            yield name, "edited"


def _copy(source: Path, target: Path) -> None:
    """Copy content and permissions; ``target`` appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        pass
    try:
        shutil.copy(source, partial.name)
        Path(partial.name).replace(target)
    except BaseException:
        Path(partial.name).unlink(missing_ok=True)
        raise


def _write_marker(folder: Path, marker: Marker) -> None:
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as partial:
        partial.write(marker.model_dump_json(indent=1) + "\n")
    Path(partial.name).chmod(0o644)
    Path(partial.name).replace(folder / MARKER)
