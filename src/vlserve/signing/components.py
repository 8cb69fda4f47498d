"""Lists of components in CycloneDX 1.6: of an archive, and of vlserve itself.

Nothing but the standard library is imported, because setup.py writes the wheel's list by it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LOCKED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s\\;]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def component_list(
    main: Mapping[str, Any], components: Sequence[Mapping[str, Any]], vlserve: str
) -> bytes:
    """Return a list of what ``main`` is made of, as JSON. It holds no time and no serial number:
    the same components give the same bytes."""
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "vlserve", "version": vlserve}]
            },
            "component": main,
        },
        "components": components,
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"


def hashed(kind: str, name: str, sha256: str, **more: str) -> dict[str, Any]:
    """Return a component of the CycloneDX type ``kind`` with its sha256."""
    digest = {"alg": "SHA-256", "content": sha256}
    return {"type": kind, "name": name, **more, "hashes": [digest]}


def locked_libraries(lock: str) -> Iterator[Mapping[str, Any]]:
    """Yield the libraries of a lock of pip, with the sha256 of each of their files."""
    for entry in lock.replace("\\\n", " ").splitlines():
        match = _LOCKED.match(entry)
        if match is None:
            continue
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        purl = f"pkg:pypi/{name}@{match['version'].replace('+', '%2B')}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": match["version"],
            "purl": purl,
            "externalReferences": [
                {
                    "type": "distribution",
                    "url": f"https://pypi.org/project/{name}/{match['version']}/",
                    "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests],
                }
                for digests in [_HASH.findall(entry)]
                if digests
            ],
        }
