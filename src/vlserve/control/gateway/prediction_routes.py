"""One model's routes: explicit versions, weighted ones and shadows, by whatever paths they are
asked for. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.envoy_clusters import Config, cluster_name, copies_name, shadow_name
from vlserve.control.gateway.route_parts import asked_with, header, not_empty, refusal, with_slash
from vlserve.runtime import headers
from vlserve.settings_sections import GatewaySettings


@dataclass(frozen=True)
class Form:
    """How a protocol asks for predictions.

    ``of_model``, ``of_version``: the matches of the paths of a model, and of one of its versions.
    ``methods``: as in "GET|POST".
    ``told``: request headers that tell the worker of it: name -> what Envoy writes.
    """

    of_model: Callable[[str], Sequence[Config]]
    of_version: Callable[[str, int], Sequence[Config]]
    methods: str = "POST"
    told: Mapping[str, str] = field(default_factory=dict)


_COPIES, _STEP, _TOLD = "request_mirror_policies", "metadata", "request_headers_to_add"
"""Entries of weighted routes that a rollout has, or adds to."""

METHODS = "GET|POST|PUT"
"""That ask for a prediction, as TorchServe takes them."""

ALLOWED = "GET, POST, PUT, OPTIONS"
"""As a 405 names them; torchserve_routes.py answers the last one."""

PLAIN = Form(
    of_model=lambda model: with_slash(f"/predictions/{model}"),
    of_version=lambda model, version: with_slash(f"/predictions/{model}/{version}"),
    methods=METHODS,
)


def plain_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes of /predictions/{model}…; the first that matches counts."""
    prefix: Config = {"path_separated_prefix": f"/predictions/{route.model}"}
    wrong_method = refusal(
        405, "method_not_allowed", "predictions are asked for with POST", ALLOWED
    )
    return [
        *prediction_paths(route, gateway, PLAIN),
        {"match": asked_with(METHODS, prefix), **no_version(route)},
        {"match": prefix, **wrong_method},
    ]


def prediction_paths(route: ModelRoute, gateway: GatewaySettings, form: Form) -> list[Config]:
    """Return the routes that lead to versions: by path, by X-Model-Version, by weight."""
    to_version = {
        version: _told(form)
        | {"route": _forward(gateway, {"cluster": cluster_name(route.model, version)})}
        for version in route.versions
    }
    any_version, match_of = not_empty(headers.MODEL_VERSION), partial(asked_with, form.methods)
    return [
        *(
            {"match": match_of(path), **forward}
            for version, forward in to_version.items()
            for path in form.of_version(route.model, version)
        ),
        *(
            {"match": match_of(path, _version_header(version)), **forward}
            for version, forward in to_version.items()
            for path in form.of_model(route.model)
        ),
        *(
            {"match": match_of(path, any_version), **no_version(route)}
            for path in form.of_model(route.model)
        ),
        *_weighted_paths(route, gateway, form),
    ]


def no_version(route: ModelRoute) -> Config:
    """Return the refusal of a version that a model has not."""
    numbers = ", ".join(map(str, sorted(route.versions))) or "none"
    message = f"{route.model} has no such version; it has {numbers}"
    return refusal(404, "version_not_found", message)


def unreleased(route: ModelRoute) -> Config:
    """Return the refusal of a model of which no version has weight."""
    message = f"no version of {route.model} is released; ask for one by its number"
    return refusal(404, "version_not_found", message)


def _weighted_paths(route: ModelRoute, gateway: GatewaySettings, form: Form) -> list[Config]:
    """Return the routes by weight: the same version for the same X-Sticky-Key, else by chance.

    An empty key would be a constant, so it counts as none.
    """
    paths, match_of = form.of_model(route.model), partial(asked_with, form.methods)
    shares = [
        {"name": cluster_name(route.model, version), "weight": weight}
        for version, weight in route.weights.items()
        if weight
    ]
    if not shares:
        return [{"match": match_of(path), **unreleased(route)} for path in paths]
    sticky = _forward(gateway, {"weighted_clusters": {"clusters": shares, "use_hash_policy": True}})
    rewrite = {
        "pattern": {"regex": "^(.*)$"},
        "substitution": route.salt.replace("\\", r"\\") + r"\1",
    }
    sticky["hash_policy"] = [
        {"header": {"header_name": headers.STICKY_KEY, "regex_rewrite": rewrite}}
    ]
    random = _forward(gateway, {"weighted_clusters": {"clusters": shares}})
    has_key = not_empty(headers.STICKY_KEY)
    copies, entries = _copies(route), _noted(route, form)
    return [
        *(
            {"match": match_of(path, has_key), "route": sticky | copies, **entries}
            for path in paths
        ),
        *({"match": match_of(path), "route": random | copies, **entries} for path in paths),
    ]


def with_all_traffic(config: Config, model: str, version: int) -> Config:
    """Return a route configuration in which one version has all traffic of its model, without a
    step and without copies, as it would be rendered."""
    hosts = [
        host | {"routes": [_moved(path, model, version) for path in host["routes"]]}
        for host in config["virtual_hosts"]
    ]
    return config | {"virtual_hosts": hosts}


def _moved(path: Config, model: str, version: int) -> Config:
    weighted_clusters = path.get("route", {}).get("weighted_clusters", {})
    shares = weighted_clusters.get("clusters", [])
    if not shares or shares[0]["name"].rpartition("-")[0] != model:
        return path
    route = {name: value for name, value in path["route"].items() if name != _COPIES}
    route["weighted_clusters"] = weighted_clusters | {
        "clusters": [{"name": cluster_name(model, version), "weight": 100}]
    }
    additions = [
        each
        for each in path.get(_TOLD, ())
        if each["header"]["key"] not in (headers.SHADOW, headers.STEP)
    ]
    rest = {name: value for name, value in path.items() if name not in (_STEP, _TOLD)}
    return rest | {"route": route} | ({_TOLD: additions} if additions else {})


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
    return {_COPIES: [copies]}


def _noted(route: ModelRoute, form: Form) -> Config:
    """Return the route's entries that carry the rollout's step into the access log.

    The step belongs to the route, so it is known with the version: when a request's headers are
    read, whatever becomes of it. For copies, headers say their step and where they go; engine.lua
    removes them before engines see them.
    """
    entries = _told(form)
    if route.step:
        entries[_STEP] = {"filter_metadata": {"vlserve": {"step": route.step}}}
    if route.shadow:
        to = shadow_name(route.model, route.shadow.version)
        entries[_TOLD] = [
            *entries.get(_TOLD, ()),
            {"header": {"key": headers.SHADOW, "value": to}},
            {"header": {"key": headers.STEP, "value": "%METADATA(ROUTE:vlserve:step)%"}},
        ]
    return entries


def _told(form: Form) -> Config:
    additions = [{"header": {"key": name, "value": value}} for name, value in form.told.items()]
    return {_TOLD: additions} if additions else {}


def _forward(gateway: GatewaySettings, target: Config) -> Config:
    return target | {
        "timeout": f"{gateway.timeout_s:g}s",
        "path_rewrite": "%METADATA(CLUSTER:vlserve:path)%",
        "host_rewrite_literal": "engine",
    }


def _version_header(version: int) -> Config:
    return header(headers.MODEL_VERSION, {"exact": str(version)})
