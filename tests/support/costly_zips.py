"""Archives that cost far more to read than they are large."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable

from support.archive_members import Members
from support.forged_zips import also_named, deflated, engine_manifest, stored
from support.member_edits import GRAPH, MANIFEST, BadArchive


def zeros(size_bytes: int) -> Callable[[Members], bytes]:
    """An archive whose graph is that many zeros, deflated to a thousandth."""

    def make(members: Members) -> bytes:
        digest, file = hashlib.sha256(), io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(GRAPH, "w", force_zip64=True) as target:
                for _ in range(0, size_bytes, 2**20):
                    target.write(bytes(2**20))
                    digest.update(bytes(2**20))
            manifest = json.loads(members[MANIFEST])
            manifest["files"][GRAPH] = digest.hexdigest()
            for name, content in members.items():
                if name not in (MANIFEST, GRAPH):
                    archive.writestr(name, content)
            archive.writestr(MANIFEST, json.dumps(manifest))
        return file.getvalue()

    return make


def _manifest_saying(**changes: object) -> Callable[[Members], bytes]:
    return lambda members: deflated(
        members | {MANIFEST: json.dumps(json.loads(members[MANIFEST]) | changes).encode()}
    )


def _many_members(members: Members) -> bytes:
    return stored(members | {f"assets/{number}": b"" for number in range(10_001)})


LARGE = "archive_too_large"

COSTLY = [
    BadArchive("zeros", LARGE, "more than 20 times as many", zeros(2**27)),
    BadArchive("members", LARGE, "members, more than 10000", _many_members),
    BadArchive("a-long-name", LARGE, "longer than 255 bytes", also_named("assets/" + "a" * 300)),
    BadArchive(
        "torchserves-manifest-large",
        LARGE,
        "MAR-INF/MANIFEST.json has",
        engine_manifest(b" " * 100_000),
    ),
    BadArchive(
        "values", LARGE, "values, more than", _manifest_saying(options={"a": [0] * 600_000})
    ),
    BadArchive(
        "labels", LARGE, "labels, more than", _manifest_saying(labels=[*map(str, range(100_001))])
    ),
    BadArchive(
        "a-long-label", LARGE, "characters in a label", _manifest_saying(labels=["a" * 2000])
    ),
    BadArchive(
        "probes",
        LARGE,
        "101 probes, more than",
        _manifest_saying(probes=[{"fields": {}, "answer": {}}] * 101),
    ),
]
