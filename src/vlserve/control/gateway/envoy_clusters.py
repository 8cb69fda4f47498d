"""Routing -> Envoy's clusters: which engine instances answer what. Pure.

A version has one cluster, named after it. A shadow has two more, with a dot, which is in no
model's name: `tagger-2.copies` takes copies from their requests to the gateway's own listener for
them, `tagger-2.shadow` from there to the instances.
"""

from typing import Any

from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway import envoy_adopted, envoy_triton
from vlserve.control.gateway.cluster_filters import with_filters
from vlserve.settings import Settings

Config = dict[str, Any]

SHADOW_LISTENER = "shadow"
"""Name of the internal listener of the bootstrap that copies go to."""

COPIES_BYTES = 512 * 1024 * 1024
"""Of the bodies of copies under way, at most; a quarter of the memory that envoy.yaml allows."""

_CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_OUTLIERS: Config = {
    "split_external_local_origin_errors": True,
    # An engine that hangs takes connections and says nothing: what counts are tries without an
    # answer in time, or cut off. What an engine says, be it an error, shows that it lives.
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_local_origin_success_rate": 0,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "interval": "1s",
    "base_ejection_time": "5s",
    "max_ejection_time": "30s",
    "max_ejection_percent": 50,
}
"""When an instance gets no requests for a while, where there is another one. That half of them stay
keeps Envoy from taking all back in a panic."""

_NO_ANSWER = {"code": "engine_unavailable", "message": "no engine instance answers"}
_NOT_LOADED = {
    "code": "version_unavailable",
    "message": "no engine instance has this version loaded; `vlserve status` says why",
}
"""What the gateway says where no instance can be asked: engines that run may lack an archive."""


def cluster_name(model: str, version: int) -> str:
    """Return Envoy's cluster of one version."""
    return f"{model}-{version}"


def shadow_name(model: str, version: int) -> str:
    """Return Envoy's cluster of the instances that answer copies."""
    return f"{cluster_name(model, version)}.shadow"


def copies_name(model: str, version: int) -> str:
    """Return Envoy's cluster that takes copies from a request to the shadow's listener: its
    statistics count each copy from beginning to end."""
    return f"{cluster_name(model, version)}.copies"


def clusters_counted_for(cluster: str) -> str:
    """Return pattern of the clusters whose running requests keep this one: to a version go requests
    and copies, and a copy is on both clusters of its shadow."""
    version, _, of_a_shadow = cluster.partition(".")
    return version + (r"\.(copies|shadow)" if of_a_shadow else r"(\.copies)?")


def clusters(routing: Routing, settings: Settings) -> list[Config]:
    """Return one cluster for each version that clients may ask for: the instances that hold it. Two
    for each shadow: the way that copies take, and the instances again."""
    return [
        cluster
        for route in routing.models
        for cluster in (
            *(_cluster(route, version, routing, settings) for version in route.versions),
            *_shadow_clusters(route, routing, settings),
        )
    ]


def _cluster(route: ModelRoute, version: int, routing: Routing, settings: Settings) -> Config:
    model, adopted = route.model, version in route.adopted
    name = cluster_name(model, version)
    engine = settings.engine
    instances = _holding(model, version, routing)
    on_triton = any(instance.engine == "triton" for instance in instances)
    path = envoy_triton.infer_path if on_triton else _prediction_path
    own: Config = envoy_adopted.own_filters(settings) if adopted else {}
    if on_triton:
        own = envoy_triton.own_filters(settings, adopted)
    endpoints = [
        {
            "endpoint": {
                "address": {
                    "socket_address": {"address": instance.host, "port_value": instance.port}
                }
            },
            "metadata": {
                "filter_metadata": {"vlserve": {"token": instance.token, "version": str(version)}}
            },
        }
        for instance in instances
    ]
    outliers: Config = {"outlier_detection": _OUTLIERS} if len(endpoints) > 1 else {}
    nobody = _NOT_LOADED if routing.instances and not endpoints else _NO_ANSWER
    about = {"model": model, "version": str(version), "path": path(model, version), **nobody}
    return (outliers | own) | {
        "@type": _CLUSTER_TYPE,
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "metadata": {"filter_metadata": {"vlserve": about}},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {
            "thresholds": [
                {
                    # A dying instance gives back what its workers held and as much again; beyond
                    # that, retries would only multiply an overload.
                    "retry_budget": {
                        "budget_percent": {"value": 20},
                        "min_retry_concurrency": 2 * engine.workers * engine.batch_size,
                    }
                }
            ]
        },
    }


def _holding(model: str, version: int, routing: Routing) -> list[Instance]:
    """Return the instances that hold a version. Should engines of two kinds hold it, as while it
    moves from one to the other, those of the first one's kind: a path is one engine's."""
    instances = [
        instance for instance in routing.instances if (model, version) not in instance.lacks
    ]
    return [instance for instance in instances if instance.engine == instances[0].engine]


def held_somewhere(routing: Routing) -> bool:
    """Return whether an instance answers for some version that clients may ask for."""
    return any(
        _holding(route.model, version, routing)
        for route in routing.models
        for version in route.versions
    )


def _prediction_path(model: str, version: int) -> str:
    """Return TorchServe's path of predictions."""
    return f"/predictions/{model}/{version}"


def _shadow_clusters(route: ModelRoute, routing: Routing, settings: Settings) -> list[Config]:
    """Return how copies reach the shadow. Connections, limits and statistics of these clusters are
    their own, so that requests to the same version do not feel them."""
    if not route.shadow:
        return []
    version, most = route.shadow.version, _most_copies(routing, settings)
    way = copies_name(route.model, version)
    listener = {"envoy_internal_address": {"server_listener_name": SHADOW_LISTENER}}
    to_listener = {
        "@type": _CLUSTER_TYPE,
        "name": way,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": way,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": listener}}]}],
        },
        "circuit_breakers": {"thresholds": [{"max_requests": most, "max_pending_requests": most}]},
    } | with_filters()  # none: no engine is asked yet
    name = shadow_name(route.model, version)
    to_instances = _cluster(route, version, routing, settings)
    to_instances["name"] = to_instances["load_assignment"]["cluster_name"] = name
    return [to_listener, to_instances]


def _most_copies(routing: Routing, settings: Settings) -> int:
    """Return how many copies may be under way to one shadow; others are left out. What its workers
    hold and as much again, if the bodies of all shadows stay small beside the gateway's memory: one
    that hangs reads none of them."""
    engine = settings.engine
    at_work = 2 * engine.workers * engine.batch_size * max(1, len(routing.instances))
    shadows = sum(route.shadow is not None for route in routing.models)
    in_memory = COPIES_BYTES // settings.gateway.max_body_bytes // shadows
    return max(1, min(at_work, in_memory))
