"""Request ids of the stack's own requests: answers to them are no answers to callers, and their
inputs are not kept."""

import secrets

_TRIAL, _PROBE = "trial-", "probe-"


def trial_id() -> str:
    """Return the id of one more trial, which a person sends from the console."""
    return f"{_TRIAL}{secrets.token_hex(8)}"


def probe_id() -> str:
    """Return the id of one more probe, which the control service or a health check sends."""
    return f"{_PROBE}{secrets.token_hex(8)}"


def is_own(request_id: str) -> bool:
    """Return whether an id is that of a trial or a probe."""
    return request_id.startswith((_TRIAL, _PROBE))
