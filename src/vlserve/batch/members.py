"""Files of which rows are made: members of a tar shard or a folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlserve_worker import video
from vlserve_worker.batch_parts import STATE
from vlserve_worker.storage import AnyPath, name_below, whole_seconds

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
TEXTS = ("txt", "json", "cls")
FEATURES = ("npy",)
ENDINGS = frozenset((*IMAGES, *video.ENDINGS, *TEXTS, *FEATURES))
RECORD = f"{STATE}/job.json"
"""Of a job, in the folder of its output."""


@dataclass(frozen=True)
class Member:
    """One file of a tar shard or a folder: where its bytes lie."""

    name: str
    path: AnyPath
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name up to the first dot of its last part, as webdataset groups members."""
        folder, slash, file = self.name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    @property
    def ending(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def makes_row(self) -> bool:
        return self.ending in ENDINGS


@dataclass(frozen=True)
class FolderMember(Member):
    """One file of a folder. ``changed_ns``: of an object in whole seconds, for what a listing says
    of one and what is said of it alone may differ in the rest."""

    changed_ns: int


def folder_members(folder: AnyPath) -> Sequence[FolderMember]:
    """Return the files below a folder that make rows, in the order of their paths.

    Neither hidden ones, nor those in a folder with a job's output: a job that writes below its
    input reads none of its own report. OSError where one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [(name_below(path, folder), path) for path in paths]
    outputs = {name.removesuffix(f"/{RECORD}") for name, _ in files if name.endswith(f"/{RECORD}")}
    members: list[FolderMember] = []
    for name, path in files:
        parents, is_hidden = _parents(name), any(part.startswith(".") for part in name.split("/"))
        if is_hidden or not outputs.isdisjoint(parents):
            continue
        state = path.stat()
        changed_ns = whole_seconds(path, state.st_mtime_ns)
        member = FolderMember(name, path, 0, state.st_size, changed_ns)
        if member.makes_row:
            members.append(member)
    return members


def listing(members: Sequence[FolderMember]) -> str:
    """Return a digest of names, sizes and times, whatever their order."""
    digest = hashlib.blake2b(digest_size=16)
    for line in sorted((member.name, member.size, member.changed_ns) for member in members):
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _parents(name: str) -> Sequence[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
