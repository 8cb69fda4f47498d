"""What Envoy's routes are made of: matches, refusals, what is buffered. Pure."""

import json

from vlserve.control.gateway.envoy_clusters import Config
from vlserve.settings_sections import GatewaySettings

_BUFFER_TYPE = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute"
_OFF = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
FILTER_ON = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
"""Of a route that turns a filter on which is off elsewhere."""
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


def error(code: str, message: str) -> Config:
    """Return what every error's body has."""
    return {"error": {"code": code, "message": message}}


def refusal(status: int, code: str, message: str, allow: str = "") -> Config:
    """Return a refusal; ``allow``: the methods that are taken."""
    answer = direct(status, error(code, message))
    if allow:
        answer["response_headers_to_add"] = [{"header": {"key": "allow", "value": allow}}]
    return answer


NO_MODEL = refusal(404, "model_not_found", "no model of this name is served")


def buffered(route: Config, max_bytes: int) -> Config:
    """Have the gateway wait for the whole body, of at most ``max_bytes``, before it goes on."""
    buffer = {"@type": _BUFFER_TYPE, "buffer": {"max_request_bytes": max_bytes}}
    return with_filters(route, {"envoy.filters.http.buffer": buffer})


def with_torchserves_errors(route: Config) -> Config:
    """Have errors on a route carry TorchServe's three names beside ours."""
    return with_filters(route, {"vlserve.adopted_errors": FILTER_ON})


def with_filters(route: Config, filters: Config) -> Config:
    """Return a route with filters of its own: name -> what holds there, added to those it has."""
    own = route.get("typed_per_filter_config", {})
    return route | {"typed_per_filter_config": own | filters}


def large_body(path: Config, gateway: GatewaySettings) -> Config:
    """Refuse a body by the length that its headers announce, before any of it is read; ``path``:
    what is matched beside."""
    too_large = {"start": gateway.max_body_bytes + 1, "end": 2**63 - 1}
    length = {"name": "content-length", "range_match": too_large}
    message = f"the body is larger than {gateway.max_body_bytes} bytes"
    return {"match": path | {"headers": [length]}, **refusal(413, "body_too_large", message)}


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
