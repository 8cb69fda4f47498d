"""Exports of earlier runs, kept by the sha256 of everything that makes them.

A kept export is a folder of ``.vlserve/test-archives/``, called by its key. It appears whole, by a
rename, so that processes may share the folder; of two that export the same, one is kept.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / ".vlserve" / "test-archives"
MAX_KEPT = 400
"""A run of all tests asks for about 120 exports of 10 to 400 KB."""
PARTIAL = ".partial-"

Contents = Mapping[str, bytes]
"""What an export is made of: name -> bytes."""


def code_files(project: Path) -> Iterable[Path]:
    """Yield the files that every export is made by: code, entry points of handlers and locks."""
    package = project / "src" / "vlserve"
    yield from sorted(package.glob("*.py"))
    for room in ("exporter", "families", "models", "runtime"):
        yield from sorted((package / room).rglob("*.py"))
    yield from sorted((project / "handlers").glob("*.py"))
    yield from sorted(project.glob("*.lock"))


@cache
def code_of(project: Path = PROJECT) -> Contents:
    """Return the bytes of the code files by their path in the project, read once a process."""
    return {str(file.relative_to(project)): file.read_bytes() for file in code_files(project)}


def folder_of(folder: Path) -> Contents:
    """Return the bytes of the files of a folder, such as a checkpoint and its config.json."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def state_of(network: torch.nn.Module) -> Contents:
    """Return the parameters and buffers of a network."""
    return {
        f"{name} {tensor.dtype} {tuple(tensor.shape)}": tensor.contiguous().numpy().tobytes()
        for name, tensor in network.state_dict().items()
    }


def key_of(*contents: Contents) -> str:
    """Return the sha256 of all names and bytes, those of different mappings told apart."""
    digest = hashlib.sha256()
    for place, mapping in enumerate(contents):
        for name, value in sorted(mapping.items()):
            head = f"{place} {len(name.encode())} {name} {len(value)} "
            digest.update(head.encode() + value)
    return digest.hexdigest()


@dataclass(frozen=True)
class KeptExports:
    """The folder of kept exports."""

    folder: Path = FOLDER
    max_kept: int = MAX_KEPT

    def get(self, key: str) -> Path | None:
        """Return the folder of a kept export, which counts as used now."""
        entry = self.folder / key
        try:
            os.utime(entry)
        except FileNotFoundError:
            return None
        return entry

    def get_or_make(self, key: str, make: Callable[[Path], object]) -> Path:
        """Return the folder of an export; ``make`` writes into an empty one where there is none."""
        entry = self.get(key)
        if entry is not None:
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
        try:
            make(partial)
            partial.rename(self.folder / key)
        except OSError:
            if not (self.folder / key).is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.prune()
        return self.folder / key

    def prune(self) -> None:
        """Remove the exports that were used longest ago, beyond ``max_kept``."""
        entries = [path for path in self.folder.iterdir() if not path.name.startswith(PARTIAL)]
        newest_first = sorted(entries, key=_used_at, reverse=True)
        for path in newest_first[self.max_kept :]:
            shutil.rmtree(path, ignore_errors=True)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0
