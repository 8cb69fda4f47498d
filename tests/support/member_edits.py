"""Bad archives, and how one is made from a good one: members swapped, left out or listed anew."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from support import archive_members
from support.archive_members import Members

MANIFEST = "manifest.json"
ENGINE_MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "torchserve_handler.py"
TRITON_MODEL = "triton_model.py"
TASK = "handlers/tag.py"
GRAPH = "graphs/model.echo.json"
TOKENIZER = "assets/vocabulary.json"


@dataclass(frozen=True)
class BadArchive:
    """``make``: the members of a good archive -> the bytes of the bad one. ``says``: a pattern that
    the refusal must match."""

    name: str
    code: str
    says: str
    make: Callable[[Members], bytes]


def zipped(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(members.items()):
            archive.writestr(name, content)
    return file.getvalue()


def listed(members: Members, **changes: Any) -> bytes:
    """Return an archive whose manifest, with ``changes``, lists the members as they are."""
    return zipped(archive_members.listed(members, **changes))


def without(members: Members, name: str) -> Members:
    return {key: content for key, content in members.items() if key != name}


def swapped(name: str, content: bytes) -> Callable[[Members], bytes]:
    """Return what swaps a member behind the manifest's back."""
    return lambda members: zipped(members | {name: content})


def holding(name: str, content: bytes) -> Callable[[Members], bytes]:
    """Return what gives a member this content and lists it, so that only a load can tell."""
    return lambda members: listed(members | {name: content})


def saying(**changes: Any) -> Callable[[Members], bytes]:
    """Return what makes the manifest say this."""
    return lambda members: listed(members, **changes)


def engine_saying(**changes: Any) -> Callable[[Members], bytes]:
    """Return what makes TorchServe's manifest say this of the model."""

    def make(members: Members) -> bytes:
        manifest = json.loads(members[ENGINE_MANIFEST])
        manifest["model"] |= changes
        return listed(members | {ENGINE_MANIFEST: json.dumps(manifest).encode()})

    return make
