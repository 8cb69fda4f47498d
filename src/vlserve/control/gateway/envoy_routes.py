"""Routing -> Envoy's routes: explicit versions, weighted ones, shadows and clear refusals. Pure:
the same routing renders the same bytes.

Envoy's v3 API: https://www.envoyproxy.io/docs/envoy/latest/api-v3/api
"""

import re
from collections.abc import Sequence

from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway import grpc_routes, torchserve_routes, v1_routes, v2_routes
from vlserve.control.gateway.adopted_routes import adopted_paths, former_paths, large_bodies
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.prediction_routes import plain_paths
from vlserve.control.gateway.route_parts import (
    NO_MODEL,
    OPEN_TO_ALL,
    asked_with,
    buffered,
    direct,
    header,
    large_body,
    matches,
    refusal,
    with_torchserves_errors,
)
from vlserve.runtime import headers
from vlserve.settings import Settings
from vlserve.settings_sections import GatewaySettings

ROUTES = "predictions"
"""Name of the one route configuration, in routes.json and in the bootstrap."""

UNREADABLE_QUERY = r"\C*\?\C*%([0-9A-Fa-f]?|[0-9A-Fa-f]?[^0-9A-Fa-f]\C*)"
"""Matches a path with a % in its query that two hexadecimal digits do not follow."""

MAX_PATH_BYTES = 4000
"""Of a path with its query: TorchServe reads 4,096 bytes of a request's first line, Triton twice as
many; what is longer they do not answer."""
LONG_PATH = r"\C{1000}" * (MAX_PATH_BYTES // 1000) + r"\C+"
"""Matches a path that is longer; 1,000 is the most that RE2 repeats."""

PREFIXES = (
    "/predictions/",
    torchserve_routes.EXPLANATIONS,
    v1_routes.PREFIX,
    v2_routes.PREFIX,
)
"""Of all paths at which predictions are asked for."""

MAX_OWN_WORDS_BYTES = 64 * 1024
"""Most bytes of what the gateway answers itself, as of V2's metadata of a model."""

MORE_RETRIES = 4
"""Of a request that met a dead worker of Triton: it is sent again until another one is up, where
TorchServe keeps it in its queue."""

_ROUTE_TYPE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
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
        buffered(path, gateway.max_body_bytes) if "route" in path else path
        for path in (
            *(path for route in routing.models for path in _paths_of(route, gateway)),
            *former_paths(routing.models, gateway),
        )
    ]
    return {
        "@type": _ROUTE_TYPE,
        "name": ROUTES,
        "validate_clusters": True,
        "max_direct_response_body_size_bytes": MAX_OWN_WORDS_BYTES,
        "virtual_hosts": [
            {
                "name": ROUTES,
                "domains": ["*"],
                "routes": [
                    *_health_paths(),
                    *v2_routes.health_paths(routing.unready),
                    *(_questions_of_the_api_page(settings, prefix) for prefix in PREFIXES),
                    *torchserve_routes.service_paths(routing),
                    *v1_routes.service_paths(routing),
                    *(_bad_query(prefix) for prefix in PREFIXES),
                    *large_bodies(routing.models, gateway),
                    *(large_body({"prefix": prefix}, gateway) for prefix in PREFIXES),
                    *paths,
                    *v2_routes.other_paths(),
                    *grpc_routes.call_paths(routing, gateway),
                    *_unknown_paths(),
                ],
                "request_body_buffer_limit": gateway.max_body_bytes,
                "retry_policy": _retry_policy(gateway, routing.instances),
                # A try that takes too long goes on beside the next: the first answer counts.
                "hedge_policy": {"hedge_on_per_try_timeout": True},
                # engine.lua and triton.lua read both.
                "include_request_attempt_count": True,
                "request_headers_to_add": _told_of_retries(gateway, routing.instances),
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


def _paths_of(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes by a model's own name; the first that matches counts."""
    paths = [
        *adopted_paths(route, gateway),
        *torchserve_routes.model_paths(route),
        *plain_paths(route, gateway),
        *v1_routes.model_paths(route, gateway),
    ]
    if route.adopted:
        paths = [with_torchserves_errors(path) for path in paths]
    return [*paths, *v2_routes.model_paths(route, gateway)]


def _retry_policy(gateway: GatewaySettings, instances: Sequence[Instance]) -> Config:
    """Return the policy of retries: on another instance, where there is one, when an instance lost
    the request. engine.lua and triton.lua mark the replies after which a retry can help, but no
    more than `gateway.retries` of a request's; triton.lua marks more of those that a dead worker of
    Triton gave, and says how long to wait for another one."""
    more = MORE_RETRIES if _has_triton(instances) and gateway.retries else 0
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


def _told_of_retries(gateway: GatewaySettings, instances: Sequence[Instance]) -> list[Config]:
    """Return the header by which the scripts tell the tries of all from those for dead workers."""
    if not _has_triton(instances):
        return []
    return [{"header": {"key": headers.RETRIES, "value": str(gateway.retries)}}]


def _has_triton(instances: Sequence[Instance]) -> bool:
    return any(instance.engine == "triton" for instance in instances)


def _health_paths() -> list[Config]:
    """Return the routes of the gateway's own health: no key is needed, no engine is asked."""
    healthy = direct(200, {"status": "ok"})
    wrong_method = refusal(405, "method_not_allowed", "health is asked for with GET", "GET, HEAD")
    return [
        {"match": asked_with("GET|HEAD", {"path": "/health"}), **healthy, **OPEN_TO_ALL},
        {"match": {"path": "/health"}, **wrong_method},
    ]


def api_page_origin(settings: Settings) -> str:
    """Return what matches the origin of the control service's API page, as a browser sends it."""
    hosts = ["127.0.0.1", "localhost", *settings.control.names]
    scheme = "https" if settings.control_tls else "http"
    return rf"{scheme}://({'|'.join(map(re.escape, hosts))}):{settings.control.port}"


def _questions_of_the_api_page(settings: Settings, prefix: str) -> Config:
    """Return the route of what a browser asks before that page's request (a CORS preflight, which
    carries no key): whether it may send these headers. envoy.yaml names the origin in answers."""
    names = ("content-type", headers.API_KEY, headers.STICKY_KEY, headers.MODEL_VERSION)
    answer = {
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": ", ".join((*names, headers.REQUEST_ID)),
        "access-control-max-age": "600",
    }
    conditions = [
        header(":method", {"exact": "OPTIONS"}),
        header("origin", matches(api_page_origin(settings))),
        {"name": "access-control-request-method", "present_match": True},
    ]
    return {
        "match": {"prefix": prefix, "headers": conditions},
        "direct_response": {"status": 204},
        "response_headers_to_add": [
            {"header": {"key": name, "value": value}} for name, value in answer.items()
        ],
        **OPEN_TO_ALL,
    }


def _bad_query(prefix: str) -> Config:
    """Refuse a query that an engine would call a fault of its own, and the gateway try again. The
    words are envoy.yaml's, as for every 400."""
    unreadable = header(":path", matches(UNREADABLE_QUERY))
    match = {"prefix": prefix, "headers": [unreadable]}
    return {"match": match, **refusal(400, "bad_request", "the query cannot be read")}


def _unknown_paths() -> list[Config]:
    tunnel = refusal(405, "method_not_allowed", "the gateway opens no tunnels", "GET, HEAD, POST")
    no_path = refusal(404, "not_found", "predictions are at POST /predictions/{model}")
    return [
        {"match": {"connect_matcher": {}}, **tunnel},
        *({"match": {"prefix": prefix}, **NO_MODEL} for prefix in PREFIXES),
        *torchserve_routes.unknown_paths(),
        {"match": {"prefix": ""}, **no_path},
    ]
