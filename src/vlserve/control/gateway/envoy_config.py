"""Envoy's static configuration: the bootstrap, its discovery files, and all of it in one for
validation. Pure.

Envoy's v3 API: https://www.envoyproxy.io/docs/envoy/latest/api-v3/api
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

import yaml

from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.envoy_routes import (
    LONG_PATH,
    MAX_PATH_BYTES,
    UNREADABLE_QUERY,
    api_page_origin,
)
from vlserve.control.gateway.envoy_tracing import with_tracing
from vlserve.control.gateway.forwarded_headers import NOT_FOR_ENGINES
from vlserve.errors import SettingsError
from vlserve.runtime import headers
from vlserve.settings import Settings
from vlserve.tls import TlsFiles

REQUEST_TIMEOUT_S = 60.0
"""How long a client may take to send a request."""

HANDSHAKE_TIMEOUT_S = 10.0
"""How long a client's TLS handshake may take."""

PREDICTIONS = "predictions"
"""The listener that clients talk to, as envoy.yaml calls it."""

_TLS_CONTEXT = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"

SHADOW_TIMEOUT = 0.95
"""Of a client's timeout: so that a copy's own runs out first, and it is logged as late, not as one
whose sender went away."""


def access_log(settings: Settings) -> Path:
    """Return the file in which the gateway writes one line per request."""
    return settings.state_dir / "logs" / "access.jsonl"


def shadow_log(settings: Settings) -> Path:
    """Return the file in which the gateway writes one line per copy that a shadow got."""
    return settings.state_dir / "logs" / "shadow.jsonl"


def admin_socket(settings: Settings) -> Path:
    """Return the socket of Envoy's admin page, which the stack's owner alone may use."""
    return settings.socket_dir / "gateway.sock"


def discovery(resources: Sequence[Config]) -> str:
    """Return the text of a discovery file, a line for each resource.

    Its version is the digest of its resources, so that the version that Envoy has in force can be
    compared with the rendered one. It is rendered at each look at the engine: json indents in
    Python, ten times as slow as it writes a line.
    """
    lines = ",\n".join(json.dumps(resource, sort_keys=True) for resource in resources)
    version = hashlib.sha256(lines.encode()).hexdigest()[:16]
    return f'{{"version_info": "{version}", "resources": [\n{lines}\n]}}\n'


def bootstrap(template: str, settings: Settings, dynamic_dir: Path) -> Config:
    """Return serving_config/gateway/envoy.yaml with the settings filled in, and the admin page on a
    private socket, wherever a copy of an earlier vlserve had it."""
    gateway = settings.gateway
    rate_per_s = gateway.rate_limit_per_s
    values = {
        "host": _address(gateway.host),
        "metrics_host": _address(gateway.metrics_host),
        "port": gateway.port,
        "metrics_port": gateway.metrics_port,
        "admin_port": gateway.metrics_port,  # asked for by copies of envoy.yaml of 0.1.0
        "admin_socket": str(admin_socket(settings)),
        "dynamic_dir": str(dynamic_dir),
        "routes_file": str(dynamic_dir / "routes.json"),
        "clusters_file": str(dynamic_dir / "clusters.json"),
        "access_log": str(access_log(settings)),
        "shadow_log": str(shadow_log(settings)),
        "not_for_engines": NOT_FOR_ENGINES,
        "unreadable_query": UNREADABLE_QUERY,
        "long_path": LONG_PATH,
        "path_too_long": f"the path with its query is longer than {MAX_PATH_BYTES} bytes: send the "
        "fields in the body, as a form or as JSON",
        "api_page": api_page_origin(settings),
        "page_reads": f"{headers.MODEL_VERSION}, {headers.REQUEST_ID}, server-timing",
        "engine_lua": str(settings.config_file("gateway/engine.lua")),
        "v2_lua": str(settings.config_file("gateway/v2.lua")),
        "adopted_errors_lua": str(settings.config_file("gateway/adopted_errors.lua")),
        "grpc_request_lua": str(settings.config_file("gateway/grpc_request.lua")),
        "grpc_answer_lua": str(settings.config_file("gateway/grpc_answer.lua")),
        "shadow_timeout": f"{SHADOW_TIMEOUT * gateway.timeout_s:g}s",
        "request_timeout": f"{REQUEST_TIMEOUT_S:g}s",
        "stream_idle_timeout": f"{gateway.timeout_s + 30:g}s",
        "no_api_keys": not gateway.api_keys,
        "callers_with_a_key": _callers_with_a_key(gateway.api_keys),
        "api_keys": [  # asked for by copies of envoy.yaml of 0.1.0
            {"key": key, "client": f"key-{number}"} for number, key in enumerate(gateway.api_keys)
        ],
        "no_rate_limit": rate_per_s is None,
        "rate_per_s": rate_per_s or 1,
        "max_body_bytes": gateway.max_body_bytes,
        "too_large": f"the body is larger than {gateway.max_body_bytes} bytes",
        "too_late": f"no answer within {gateway.timeout_s:g} s",
    }
    # JSON is YAML: a substituted string cannot end its place early
    texts = {name: json.dumps(value) for name, value in values.items()}
    try:
        configuration = dict(yaml.safe_load(Template(template).substitute(texts)))
    except (KeyError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"serving_config/gateway/envoy.yaml cannot be read: {error}") from error
    if settings.gateway_tls is not None:
        _speak_tls(configuration, settings.gateway_tls)
    pipe = {"path": str(admin_socket(settings)), "mode": 0o600}
    return with_tracing(configuration | {"admin": {"address": {"pipe": pipe}}}, settings)


def _address(host: str) -> str:
    """Return what Envoy listens on, which takes no names."""
    return "127.0.0.1" if host == "localhost" else host


def _speak_tls(configuration: Config, files: TlsFiles) -> None:
    """Have the listener of predictions show a certificate, also in a project's own envoy.yaml."""
    context = {
        "@type": _TLS_CONTEXT,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(files.certificate)},
                    "private_key": {"filename": str(files.key)},
                }
            ],
        },
    }
    for listener in configuration["static_resources"]["listeners"]:
        if listener["name"] == PREDICTIONS:
            for chain in listener["filter_chains"]:
                chain["transport_socket"] = {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": context,
                }
                chain["transport_socket_connect_timeout"] = f"{HANDSHAKE_TIMEOUT_S:g}s"


def inlined(bootstrap: Config, routes: Config, clusters: Sequence[Config]) -> Config:
    """Return one static configuration of all three, for `envoy --mode validate`, which ignores
    watched files."""
    static: Config = json.loads(json.dumps(bootstrap))
    del static["dynamic_resources"]
    resources = static["static_resources"]
    resources["clusters"] = [*resources.get("clusters", []), *map(_untyped, clusters)]
    for listener in static["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            for network_filter in chain["filters"]:
                config = network_filter["typed_config"]
                if config.pop("rds", None):
                    config["route_config"] = _untyped(routes)
    return static


def _callers_with_a_key(keys: Sequence[str]) -> list[Config]:
    """Return the principals of Envoy's rbac filter: one for each key and header that it may come
    in. It takes no empty list, but is off where there is no key."""
    as_key = [{"name": headers.API_KEY, "string_match": {"exact": key}} for key in keys]
    as_token = [
        {"name": "authorization", "string_match": {"safe_regex": {"regex": _bearer(key)}}}
        for key in keys
    ]
    return [{"header": match} for match in (*as_key, *as_token)] or [{"any": True}]


def _bearer(key: str) -> str:
    """Return what matches an Authorization header with this key, whose scheme has no case."""
    return f"(?i:bearer) +{re.escape(key)}"


def _untyped(resource: Config) -> Config:
    return {key: value for key, value in resource.items() if key != "@type"}
