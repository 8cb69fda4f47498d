"""Requests that a version must refuse, made of an archive's first probe."""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlserve.errors import DataError
from vlserve.loadgen.dataset_requests import RequestBody
from vlserve.runtime.archive import manifest_of

JSON = "application/json"


def bad_requests(archive: Path) -> dict[str, RequestBody]:
    """Return bodies by name: no JSON, no object, an unknown field, and each field of the probe
    left out, of another kind, or cut in half.

    Some are good for some tasks, as without a field that the task need not have. DataError for an
    archive without probes, ArchiveError for what is none.
    """
    probes = manifest_of(archive).probes
    if not probes:
        raise DataError(f"{archive.name} holds no probes to make requests of")
    fields = probes[0].fields
    body = json.dumps(fields).encode()
    bodies = {
        "empty": RequestBody(b"", JSON),
        "cut": RequestBody(body[:-1], JSON),
        "list": RequestBody(b"[]", JSON),
        "no fields": RequestBody(b"{}", JSON),
        "not UTF-8": RequestBody(b'{"text": "\xff\xfe"}', JSON),
        "form without its mark": RequestBody(body, "multipart/form-data"),
        "unknown content type": RequestBody(body, "application/x-unknown"),
        "unknown field": _body({**fields, "unknown_field": 1}),
    }
    for name, value in fields.items():
        rest = {key: content for key, content in fields.items() if key != name}
        bodies[f"no {name}"] = _body(rest)
        bodies[f"{name} is a number"] = _body({**fields, name: 7})
        bodies[f"{name} is null"] = _body({**fields, name: None})
        bodies[f"{name} is empty"] = _body({**fields, name: ""})
        if (half := _half(value)) is not None:
            bodies[f"{name} is cut"] = _body({**fields, name: half})
    return bodies


def _body(fields: Mapping[str, Any]) -> RequestBody:
    return RequestBody(json.dumps(fields).encode(), JSON)


def _half(value: Any) -> str | None:
    """Return the first half of a file that a field holds as base64; None where it holds none."""
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None
    return base64.b64encode(content[: len(content) // 2]).decode("ascii")
