"""Calls of the control service by the holder of a named key."""

import httpx

from support.control_api_server import RunningControl
from vlserve.control.named_keys import NamedKeys

_KINDS = {"/versions": "application/octet-stream"}


def named_keys(control: RunningControl) -> NamedKeys:
    return NamedKeys(control.settings.model_store)


def call(http: httpx.Client, key: str, method: str, path: str) -> httpx.Response:
    """Call with an empty JSON body, or no archive at all."""
    lines = path.endswith("/observations")
    kind = "application/x-ndjson" if lines else _KINDS.get(path, "application/json")
    return http.request(
        method,
        path,
        headers={"Authorization": f"Bearer {key}", "Content-Type": kind},
        content=b"" if path in _KINDS else b"{}",
    )
