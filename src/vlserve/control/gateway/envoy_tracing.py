"""Envoy's part of traces: a span for each request and each try, sent by OTLP. Pure.

What the handler did in that time is in the access log, whose lines get a part `trace`; spans of its
stages are made from that by `vlserve.control.stage_spans`. Nothing of it is there while traces are
off.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from vlserve.control.gateway.envoy_clusters import Config
from vlserve.settings import Settings

CLUSTER = "traces"
SERVICE = "vlserve"
_TIMEOUT = "5s"
_REQUEST_IDS = "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"
_LOGGED = {
    # Of the last span that was told an engine: the try that was answered.
    "parent": "%REQ(traceparent):64%",
    "timing": "%RESP(server-timing):1024%",
    "began_us": "%START_TIME(%s%6f)%",
    "sent_us": "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
    "engine_us": "%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%",
}
"""``timing``: of the worker; TorchServe's has a header of its own. All else in microseconds:
``began_us``, Unix time; from then to the engine's request; from that to its answer."""


def with_tracing(bootstrap: Config, settings: Settings) -> Config:
    """Return the bootstrap with traces, where `traces.otlp_url` has them sent somewhere."""
    url = settings.traces.otlp_url
    if url is None:
        return bootstrap
    configuration: Config = json.loads(json.dumps(bootstrap))
    for manager in _of_clients(configuration):
        manager["tracing"] = _tracing(url, settings.traces.sample_percent)
        # Else the request's id decides, against a caller's traceparent.
        ids = manager.setdefault("request_id_extension", {"typed_config": {"@type": _REQUEST_IDS}})
        ids["typed_config"]["use_request_id_for_trace_sampling"] = False
        for log in manager.get("access_log", []):
            if fields := log["typed_config"].get("log_format", {}).get("json_format"):
                fields["trace"] = _LOGGED
    configuration["static_resources"]["clusters"].append(_collector(url))
    return configuration


def _of_clients(bootstrap: Config) -> Iterator[Config]:
    """Yield the connection manager that clients talk to: the one with watched routes."""
    for listener in bootstrap["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            for network_filter in chain["filters"]:
                if "rds" in network_filter["typed_config"]:
                    yield network_filter["typed_config"]


def _tracing(url: str, sample_percent: float) -> Config:
    return {
        "random_sampling": {"value": 100},  # the sampler decides
        "client_sampling": {"value": 0},  # a caller's traceparent says it, and no header of Envoy's
        "spawn_upstream_span": True,
        "max_path_tag_length": 256,
        "custom_tags": [
            {
                "tag": f"vlserve.{name}",
                "metadata": {
                    "kind": {"cluster": {}},
                    "metadata_key": {"key": "vlserve", "path": [{"key": name}]},
                },
            }
            for name in ("model", "version")
        ],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": SERVICE,
                "sampler": _sampler(sample_percent),
                "http_service": {"http_uri": {"uri": url, "cluster": CLUSTER, "timeout": _TIMEOUT}},
            },
        },
    }


def _sampler(percent: float) -> Config:
    """Return what a traceparent says, and without one a share of the requests."""
    share = {"numerator": round(percent * 10_000), "denominator": "MILLION"}
    ratio = _of_samplers("trace_id_ratio_based", "TraceIdRatioBased", sampling_percentage=share)
    return _of_samplers("parent_based", "ParentBased", wrapped_sampler=ratio)


def _of_samplers(name: str, kind: str, **configuration: Any) -> Config:
    package = "envoy.extensions.tracers.opentelemetry.samplers.v3"
    return {
        "name": f"envoy.tracers.opentelemetry.samplers.{name}",
        "typed_config": {
            "@type": f"type.googleapis.com/{package}.{kind}SamplerConfig",
            **configuration,
        },
    }


def _collector(url: str) -> Config:
    address = urlsplit(url)
    socket = {"address": address.hostname, "port_value": address.port or 80}
    return {
        "name": CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": socket}}}]}
            ],
        },
    }
