"""Request ids of the stack's own probes: answers to them are no answers to callers."""

import secrets

PROBE_ID = "probe-"
"""How they begin."""


def probe_id() -> str:
    """Return the request id of one more probe."""
    return f"{PROBE_ID}{secrets.token_hex(8)}"
