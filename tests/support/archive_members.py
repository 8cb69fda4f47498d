"""Members of an archive that tests change."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve.exporter.pack import write_zip
from vlserve.runtime.manifest import MANIFEST

Members = dict[str, bytes]


def written(folder: Path, members: Mapping[str, bytes]) -> Path:
    path = folder / "changed.mar"
    write_zip(path, members)
    return path


def listed(members: Members, **changes: Any) -> Members:
    """The members again, with a manifest that lists them as they are now."""
    manifest = json.loads(members[MANIFEST]) | changes
    manifest["files"] = {
        name: hashlib.sha256(raw).hexdigest() for name, raw in members.items() if name != MANIFEST
    }
    return members | {MANIFEST: json.dumps(manifest).encode()}
