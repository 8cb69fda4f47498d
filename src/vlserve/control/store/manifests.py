"""The manifests of versions, read once."""

import sqlite3
import sys
from collections.abc import Callable

from vlserve.control.domain import Key, State
from vlserve.runtime.manifest import Manifest


class Manifests:
    """Probes make a manifest long, and nothing is asked of a version that is out of the engine:
    where versions come and go, those without probes are soon nearly all."""

    def __init__(self, query: Callable[..., list[sqlite3.Row]]) -> None:
        self._query = query
        self._read: dict[Key, tuple[str, bool, Manifest]] = {}
        """With the archive's sha256, and whether it is whole. By version, not by archive: one that
        failed gives its number to another archive."""

    def of(self, version: sqlite3.Row) -> Manifest:
        """Return the manifest of a row; of a version that is out of the engine, without probes."""
        key, whole = (version["model"], version["version"]), not State(version["state"]).out
        sha256, is_whole, manifest = self._read.get(key, ("", whole, None))
        if manifest is None or (sha256, is_whole) != (version["sha256"], whole):
            (row,) = self._query(
                "SELECT manifest FROM versions WHERE model = ? AND version = ?", *key
            )
            manifest = _short(Manifest.model_validate_json(row["manifest"]), whole)
            self._read[key] = version["sha256"], whole, manifest
        return manifest


def _short(manifest: Manifest, whole: bool) -> Manifest:
    """Return a manifest that takes little memory: archives of one runtime have most of their
    members in common, so their names and digests are kept once."""
    files = {sys.intern(name): sys.intern(digest) for name, digest in manifest.files.items()}
    probes = manifest.probes if whole else ()
    return manifest.model_copy(update={"files": files, "probes": probes})
