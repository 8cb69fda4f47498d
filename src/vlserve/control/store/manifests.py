"""The manifests of versions, read once."""

import sqlite3
from collections.abc import Callable

from vlserve.control.domain import State
from vlserve.runtime.manifest import Manifest


class Manifests:
    """Probes make a manifest long, and those of what is deleted are not asked."""

    def __init__(self, query: Callable[..., list[sqlite3.Row]]) -> None:
        self._query = query
        self._read: dict[str, tuple[bool, Manifest]] = {}
        """By the archive's sha256, with whether it is whole."""

    def of(self, version: sqlite3.Row) -> Manifest:
        """Return the manifest of a row; of a version that is deleted, without its probes."""
        whole = version["state"] != State.DELETED
        is_whole, manifest = self._read.get(version["sha256"], (None, None))
        if manifest is None or is_whole != whole:
            (row,) = self._query(
                "SELECT manifest FROM versions WHERE model = ? AND version = ?",
                version["model"],
                version["version"],
            )
            manifest = Manifest.model_validate_json(row["manifest"])
            if not whole:
                manifest = manifest.model_copy(update={"probes": ()})
            self._read[version["sha256"]] = whole, manifest
        return manifest
