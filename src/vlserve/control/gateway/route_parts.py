"""What Envoy's routes are made of: matches, refusals, what is buffered. Pure."""

import json

from vlserve.control.gateway.envoy_clusters import Config
from vlserve.settings_sections import GatewaySettings

_BUFFER_TYPE = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute"
_OFF = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
OPEN_TO_ALL = {
    "typed_per_filter_config": {
        "envoy.filters.http.rbac": _OFF,
        "envoy.filters.http.api_key_auth": _OFF,  # in copies of envoy.yaml of 0.1.0
        "envoy.filters.http.local_ratelimit": _OFF,
    }
}
"""What a route has that needs no key."""


def direct(status: int, body: object) -> Config:
    """Return what the gateway says itself, in JSON."""
    text = json.dumps(body)
    return {"direct_response": {"status": status, "body": {"inline_string": text}}}


def refusal(status: int, code: str, message: str, allow: str = "") -> Config:
    """Return a refusal; ``allow``: the methods that are taken."""
    refused = direct(status, {"error": {"code": code, "message": message}})
    if allow:
        refused["response_headers_to_add"] = [{"header": {"key": "allow", "value": allow}}]
    return refused


def buffered(route: Config, gateway: GatewaySettings) -> Config:
    """Have the gateway wait for the whole body before it asks an engine."""
    buffer = {"@type": _BUFFER_TYPE, "buffer": {"max_request_bytes": gateway.max_body_bytes}}
    return route | {"typed_per_filter_config": {"envoy.filters.http.buffer": buffer}}


def with_slash(path: str) -> tuple[Config, Config]:
    """Match a path, also with a slash at its end, as many clients' base addresses have one."""
    return {"path": path}, {"path": f"{path}/"}


def asked_with(methods: str, path: Config, *others: Config) -> Config:
    """Match one of ``methods`` ("GET|POST"); ``others``: headers beside."""
    return path | {"headers": [header(":method", matches(methods)), *others]}


def not_empty(name: str) -> Config:
    """Match a header of any bytes but none: a regular expression's dot takes UTF-8 alone."""
    empty = header(name, {"exact": ""})
    return empty | {"treat_missing_header_as_empty": True, "invert_match": True}


def matches(regex: str) -> Config:
    """Match a string as a whole."""
    return {"safe_regex": {"regex": regex}}


def header(name: str, match: Config) -> Config:
    """Match a header's value."""
    return {"name": name, "string_match": match}
