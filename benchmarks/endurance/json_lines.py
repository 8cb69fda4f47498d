"""Schemathesis learns to send JSON lines; `fuzz` names this file to it."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def to_json_line(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Return a drawn value as one line; bytes, which lines of no form are drawn as, as they are."""
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
