"""Routing -> Envoy's routes: explicit versions, weighted ones, shadows and clear refusals. Pure:
the same routing renders the same bytes.

Envoy's v3 API: https://www.envoyproxy.io/docs/envoy/latest/api-v3/api
"""

import json
from collections.abc import Sequence

from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway.envoy_clusters import Config, cluster_name, copies_name, shadow_name
from vlserve.runtime import headers
from vlserve.settings import Settings
from vlserve.settings_sections import GatewaySettings

ROUTES = "predictions"
"""Name of the one route configuration, in routes.json and in the bootstrap."""

UNREADABLE_QUERY = r"\C*\?\C*%([0-9A-Fa-f]?|[0-9A-Fa-f]?[^0-9A-Fa-f]\C*)"
"""Matches a path with a % in its query that two hexadecimal digits do not follow."""

MORE_RETRIES = 4
"""Of a request that met a dead worker of Triton: it is sent again until another one is up, where
TorchServe keeps it in its queue."""

_ROUTE_TYPE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
_BUFFER_TYPE = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute"
_OFF = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
_OPEN_TO_ALL = {
    "typed_per_filter_config": {
        "envoy.filters.http.rbac": _OFF,
        "envoy.filters.http.api_key_auth": _OFF,  # in copies of envoy.yaml of 0.1.0
        "envoy.filters.http.local_ratelimit": _OFF,
    }
}
_PREVIOUS_HOSTS = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
        ".PreviousHostsPredicate"
    },
}


def routes(routing: Routing, settings: Settings) -> Config:
    """Return the route configuration."""
    gateway = settings.gateway
    paths = [
        _buffered(path, gateway) if "route" in path else path
        for route in routing.models
        for path in _model_paths(route, gateway)
    ]
    return {
        "@type": _ROUTE_TYPE,
        "name": ROUTES,
        "validate_clusters": True,
        "virtual_hosts": [
            {
                "name": ROUTES,
                "domains": ["*"],
                "routes": [
                    *_health_paths(),
                    _questions_of_the_api_page(settings),
                    *_bad_queries(),
                    *_large_bodies(gateway),
                    *paths,
                    *_unknown_paths(),
                ],
                "request_body_buffer_limit": gateway.max_body_bytes,
                "retry_policy": _retry_policy(gateway, routing.instances),
                # A try that takes too long goes on beside the next: the first answer counts.
                "hedge_policy": {"hedge_on_per_try_timeout": True},
                # triton.lua reads both.
                "include_request_attempt_count": True,
                "request_headers_to_add": [
                    {"header": {"key": headers.RETRIES, "value": str(gateway.retries)}}
                ],
                "response_headers_to_remove": [
                    headers.ANSWERED_BY,
                    headers.RETRY,
                    headers.RETRY_AFTER,
                ],
                "response_headers_to_add": [
                    {
                        "header": {
                            "key": headers.MODEL_VERSION,
                            "value": "%UPSTREAM_METADATA(vlserve:version)%",  # once it was asked
                        },
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                ],
            }
        ],
    }


def _retry_policy(gateway: GatewaySettings, instances: Sequence[Instance]) -> Config:
    """Return the policy of retries: on another instance, where there is one, when an instance lost
    the request. engine.lua and triton.lua mark the replies after which a retry can help; the latter
    also says how long to wait for a worker, and does not mark more than `gateway.retries` of the
    other replies."""
    on_triton = any(instance.engine == "triton" for instance in instances)
    more = MORE_RETRIES if on_triton and gateway.retries else 0
    policy: Config = {
        "retry_on": "connect-failure,reset,retriable-headers",
        "num_retries": gateway.retries + more,
        "retriable_headers": [{"name": headers.RETRY, "present_match": True}],
        "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
        "rate_limited_retry_back_off": {
            "reset_headers": [{"name": headers.RETRY_AFTER, "format": "SECONDS"}],
            "max_interval": f"{gateway.timeout_s:g}s",
        },
    }
    if len(instances) > 1:
        policy["per_try_timeout"] = f"{gateway.try_timeout_s:g}s"
        policy["retry_host_predicate"] = [_PREVIOUS_HOSTS]
        policy["host_selection_retry_max_attempts"] = 20
    return policy


def _model_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes of /predictions/{model}…; the first that matches counts."""
    model = f"/predictions/{route.model}"
    known = ", ".join(map(str, sorted(route.versions))) or "none"
    no_version = _refusal(
        404, "version_not_found", f"{route.model} has no such version; it has {known}"
    )
    to_version = {
        version: _forward(gateway, {"cluster": cluster_name(route.model, version)})
        for version in route.versions
    }
    asks = _not_empty(headers.MODEL_VERSION)
    return [
        *(
            {"match": _post(path), "route": forward}
            for version, forward in to_version.items()
            for path in _with_slash(f"{model}/{version}")
        ),
        *(
            {"match": _post(path, _version_header(version)), "route": forward}
            for version, forward in to_version.items()
            for path in _with_slash(model)
        ),
        *({"match": _post(path, asks), **no_version} for path in _with_slash(model)),
        *_weighted_paths(route, gateway),
        {"match": _post({"path_separated_prefix": model}), **no_version},
        {
            "match": {"path_separated_prefix": model},
            **_refusal(405, "method_not_allowed", "predictions are asked for with POST", "POST"),
        },
    ]


def _weighted_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes by weight: the same version for the same X-Sticky-Key, else by chance.

    An empty key would be a constant, so it counts as none.
    """
    paths = _with_slash(f"/predictions/{route.model}")
    shares = [
        {"name": cluster_name(route.model, version), "weight": weight}
        for version, weight in route.weights.items()
        if weight
    ]
    if not shares:
        unreleased = f"no version of {route.model} is released; ask for one by its number"
        refused = _refusal(404, "version_not_found", unreleased)
        return [{"match": _post(path), **refused} for path in paths]
    sticky = _forward(gateway, {"weighted_clusters": {"clusters": shares, "use_hash_policy": True}})
    salted = {
        "pattern": {"regex": "^(.*)$"},
        "substitution": route.salt.replace("\\", r"\\") + r"\1",
    }
    sticky["hash_policy"] = [
        {"header": {"header_name": headers.STICKY_KEY, "regex_rewrite": salted}}
    ]
    random = _forward(gateway, {"weighted_clusters": {"clusters": shares}})
    has_key = _not_empty(headers.STICKY_KEY)
    copied, noted = _copies(route), _noted(route)
    return [
        *({"match": _post(path, has_key), "route": sticky | copied, **noted} for path in paths),
        *({"match": _post(path), "route": random | copied, **noted} for path in paths),
    ]


def _copies(route: ModelRoute) -> Config:
    """Return the policy that copies part of the requests to the shadow, whose answers are dropped.

    Envoy draws one number for a request: modulo 100 it chooses the version of a caller without a
    key, modulo 10,000 whether to copy. With 100 for both, copies would prefer one version."""
    if not route.shadow:
        return {}
    share = {"numerator": 100 * route.shadow.percent, "denominator": "TEN_THOUSAND"}
    copies = {
        "cluster": copies_name(route.model, route.shadow.version),
        "runtime_fraction": {"default_value": share},
    }
    return {"request_mirror_policies": [copies]}


def _noted(route: ModelRoute) -> Config:
    """Return the route's entries that carry the rollout's step into the access log.

    The step belongs to the route, so it is known with the version: when a request's headers are
    read, whatever becomes of it. For copies, headers say their step and where they go; engine.lua
    removes them before engines see them.
    """
    noted: Config = {}
    if route.step:
        noted["metadata"] = {"filter_metadata": {"vlserve": {"step": route.step}}}
    if route.shadow:
        to = shadow_name(route.model, route.shadow.version)
        noted["request_headers_to_add"] = [
            {"header": {"key": headers.SHADOW, "value": to}},
            {"header": {"key": headers.STEP, "value": "%METADATA(ROUTE:vlserve:step)%"}},
        ]
    return noted


def _forward(gateway: GatewaySettings, target: Config) -> Config:
    return target | {
        "timeout": f"{gateway.timeout_s:g}s",
        "path_rewrite": "%METADATA(CLUSTER:vlserve:path)%",
        "host_rewrite_literal": "engine",
    }


def _health_paths() -> list[Config]:
    """Return the routes of the gateway's own health: no key is needed, no engine is asked."""
    healthy = {"direct_response": {"status": 200, "body": {"inline_string": '{"status": "ok"}'}}}
    read = _header(":method", _matches("GET|HEAD"))
    refused = _refusal(405, "method_not_allowed", "health is asked for with GET", "GET, HEAD")
    return [
        {"match": {"path": "/health", "headers": [read]}, **healthy, **_OPEN_TO_ALL},
        {"match": {"path": "/health"}, **refused},
    ]


def api_page_origin(settings: Settings) -> str:
    """Return what matches the origin of the control service's API page, as a browser sends it."""
    return rf"http://(127\.0\.0\.1|localhost):{settings.control.port}"


def _questions_of_the_api_page(settings: Settings) -> Config:
    """Return the route of what a browser asks before that page's request (a CORS preflight, which
    carries no key): whether it may send these headers. envoy.yaml names the origin in answers."""
    sent = ("content-type", headers.API_KEY, headers.STICKY_KEY, headers.MODEL_VERSION)
    answer = {
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": ", ".join((*sent, headers.REQUEST_ID)),
        "access-control-max-age": "600",
    }
    asked = [
        _header(":method", {"exact": "OPTIONS"}),
        _header("origin", _matches(api_page_origin(settings))),
        {"name": "access-control-request-method", "present_match": True},
    ]
    return {
        "match": {"prefix": "/predictions/", "headers": asked},
        "direct_response": {"status": 204},
        "response_headers_to_add": [
            {"header": {"key": name, "value": value}} for name, value in answer.items()
        ],
        **_OPEN_TO_ALL,
    }


def _bad_queries() -> list[Config]:
    """Refuse a query that an engine would call a fault of its own, and the gateway try again. The
    words are envoy.yaml's, as for every 400."""
    unreadable = _header(":path", _matches(UNREADABLE_QUERY))
    match = {"prefix": "/predictions/", "headers": [unreadable]}
    return [{"match": match, **_refusal(400, "bad_request", "the query cannot be read")}]


def _large_bodies(gateway: GatewaySettings) -> list[Config]:
    """Refuse a body by the length that its headers announce, before any of it is read."""
    too_large = {"start": gateway.max_body_bytes + 1, "end": 2**63 - 1}
    announced = {"name": "content-length", "range_match": too_large}
    message = f"the body is larger than {gateway.max_body_bytes} bytes"
    match = {"prefix": "/predictions/", "headers": [announced]}
    return [{"match": match, **_refusal(413, "body_too_large", message)}]


def _buffered(route: Config, gateway: GatewaySettings) -> Config:
    """Have the gateway wait for the whole body before it asks an engine."""
    buffer = {"@type": _BUFFER_TYPE, "buffer": {"max_request_bytes": gateway.max_body_bytes}}
    return route | {"typed_per_filter_config": {"envoy.filters.http.buffer": buffer}}


def _unknown_paths() -> list[Config]:
    tunnel = _refusal(405, "method_not_allowed", "the gateway opens no tunnels", "GET, HEAD, POST")
    no_model = _refusal(404, "model_not_found", "no model of this name is served")
    no_path = _refusal(404, "not_found", "predictions are at POST /predictions/{model}")
    return [
        {"match": {"connect_matcher": {}}, **tunnel},
        {"match": {"prefix": "/predictions/"}, **no_model},
        {"match": {"prefix": ""}, **no_path},
    ]


def _refusal(status: int, code: str, message: str, allow: str = "") -> Config:
    body = json.dumps({"error": {"code": code, "message": message}})
    refusal: Config = {
        "direct_response": {"status": status, "body": {"inline_string": body}},
    }
    if allow:
        refusal["response_headers_to_add"] = [{"header": {"key": "allow", "value": allow}}]
    return refusal


def _with_slash(path: str) -> tuple[Config, Config]:
    """Match a path, also with a slash at its end, as many clients' base addresses have one."""
    return {"path": path}, {"path": f"{path}/"}


def _post(path: Config, *others: Config) -> Config:
    return path | {"headers": [_header(":method", {"exact": "POST"}), *others]}


def _version_header(version: int) -> Config:
    return _header(headers.MODEL_VERSION, {"exact": str(version)})


def _not_empty(name: str) -> Config:
    """Match a header of any bytes but none: a regular expression's dot takes UTF-8 alone."""
    empty = _header(name, {"exact": ""})
    return empty | {"treat_missing_header_as_empty": True, "invert_match": True}


def _matches(regex: str) -> Config:
    return {"safe_regex": {"regex": regex}}


def _header(name: str, match: Config) -> Config:
    return {"name": name, "string_match": match}
