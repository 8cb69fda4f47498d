"""Routing -> Envoy's configuration, without an Envoy."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlserve.control.domain import Instance, ModelRoute, Routing, Shadow
from vlserve.control.gateway import envoy_clusters, envoy_config, envoy_routes
from vlserve.control.gateway.log_lines import AccessLine, ShadowLine
from vlserve.control.gateway.prediction_routes import with_all_traffic
from vlserve.errors import SettingsError
from vlserve.runtime import headers
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings, GatewaySettings

PROJECT = Path(__file__).parents[3]
TEMPLATE = (PROJECT / "serving_config" / "gateway" / "envoy.yaml").read_text(encoding="utf-8")

ONE = Instance("engine-0", "127.0.0.1", 8180, "token-0")
OTHER = Instance("engine-1", "127.0.0.1", 8190, "token-1")


def _settings(**gateway: Any) -> Settings:
    return Settings(project_dir=PROJECT, gateway=GatewaySettings(**gateway))


def _routes(*models: ModelRoute, instances: tuple[Instance, ...] = (ONE,)) -> list[dict[str, Any]]:
    config = envoy_routes.routes(Routing(models, instances), _settings())
    return list(config["virtual_hosts"][0]["routes"])


def _shares(routes: list[dict[str, Any]]) -> list[list[tuple[str, int]]]:
    return [
        [(share["name"], share["weight"]) for share in split["clusters"]]
        for route in routes
        if (split := route.get("route", {}).get("weighted_clusters"))
    ]


def test_envoy_writes_the_fields_of_the_log_lines() -> None:
    def formats(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield from [node["json_format"]] if "at" in node.get("json_format", {}) else []
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from formats(child)

    access, of_grpc, shadow = formats(
        envoy_config.bootstrap(TEMPLATE, _settings(), Path("dynamic"))
    )
    for log_format, line in ((access, AccessLine()), (shadow, ShadowLine())):
        assert log_format.keys() == {field.name for field in fields(line)}
        assert log_format["schema"] == line.schema
    assert of_grpc == access | {"status": "%DYNAMIC_METADATA(vlserve.grpc:status)%"}


def test_the_candidate_stays_first_and_weight_0_is_left_out() -> None:
    routes = _routes(ModelRoute("tagger", {3: 25, 2: 75, 1: 0}, (1, 2, 3)))
    assert _shares(routes) == [[("tagger-3", 25), ("tagger-2", 75)]] * 12


def test_the_same_routing_renders_the_same_version() -> None:
    def text(*weights: tuple[int, int]) -> str:
        routing = Routing([ModelRoute("tagger", dict(weights), (1, 2))], [ONE])
        return envoy_config.discovery([envoy_routes.routes(routing, _settings())])

    assert text((2, 5), (1, 95)) == text((2, 5), (1, 95))
    versions = {
        json.loads(document)["version_info"]
        for document in (text((2, 5), (1, 95)), text((1, 95), (2, 5)), text((2, 6), (1, 94)))
    }
    assert len(versions) == 3


def test_the_step_is_noted_where_weights_route_and_nowhere_else() -> None:
    def routes_of(step: str) -> list[tuple[str, ...]]:
        return [
            tuple(route["route"])
            for route in _routes(ModelRoute("tagger", {2: 5, 1: 95}, (1, 2), step=step))
            if route.get("metadata") == {"filter_metadata": {"vlserve": {"step": step}}}
        ]

    assert ["weighted_clusters" in route for route in routes_of("7/5")] == [True] * 12
    assert routes_of("") == []


def test_routes_changed_for_a_way_back_are_those_that_would_be_rendered() -> None:
    other = ModelRoute("tagger-2", {1: 100}, (1,), salt="b")
    rollout = ModelRoute("tagger", {2: 5, 1: 95}, (1, 2), "a", "7/5", Shadow(2, 20))
    before = envoy_routes.routes(Routing([rollout, other], [ONE]), _settings())
    back = replace(rollout, weights={1: 100}, step="", shadow=None)
    after = envoy_routes.routes(Routing([back, other], [ONE]), _settings())
    assert before != after
    assert with_all_traffic(before, "tagger", 1) == after
    assert with_all_traffic(before, "nobody", 1) == before


@pytest.mark.parametrize("salt", ["", "release-7", r"\1", "a\\"])
def test_a_salt_is_no_regular_expression(salt: str) -> None:
    routes = _routes(ModelRoute("tagger", {1: 100}, (1,), salt))
    substitutions = {
        route["route"]["hash_policy"][0]["header"]["regex_rewrite"]["substitution"]
        for route in routes
        if "hash_policy" in route.get("route", {})
    }
    assert substitutions == {salt.replace("\\", "\\\\") + r"\1"}


def test_clusters_hold_the_instances_that_hold_the_version() -> None:
    bare = Instance("engine-1", "127.0.0.1", 8190, "token-1", frozenset({("tagger", 2)}))
    routing = Routing([ModelRoute("tagger", {1: 100}, (1, 2))], [ONE, bare])
    tokens = {
        cluster["name"]: [
            endpoint["metadata"]["filter_metadata"]["vlserve"]["token"]
            for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for cluster in envoy_clusters.clusters(routing, _settings())
    }
    assert tokens == {"tagger-1": ["token-0", "token-1"], "tagger-2": ["token-0"]}


def test_copies_have_clusters_of_their_own_a_bound_and_no_retries() -> None:
    route = ModelRoute("tagger", {1: 100}, (1, 2), step="7/shadow", shadow=Shadow(2, 20))
    settings = _settings()
    clusters = {
        cluster["name"]: cluster
        for cluster in envoy_clusters.clusters(Routing([route], [ONE]), settings)
    }
    assert list(clusters) == ["tagger-1", "tagger-2", "tagger-2.copies", "tagger-2.shadow"]
    assert clusters["tagger-2.shadow"]["metadata"] == clusters["tagger-2"]["metadata"]
    routes = [each for each in _routes(route) if "request_mirror_policies" in each.get("route", {})]
    assert ["weighted_clusters" in each["route"] for each in routes] == [True] * 12
    for each in routes:
        (policy,) = each["route"]["request_mirror_policies"]
        assert policy["cluster"] == "tagger-2.copies"
        share = policy["runtime_fraction"]["default_value"]
        assert (share["numerator"], share["denominator"]) == (2000, "TEN_THOUSAND")
    bootstrap = envoy_config.bootstrap(TEMPLATE, settings, Path("/dynamic"))
    copies = _http(bootstrap, "shadow")["route_config"]["virtual_hosts"][0]
    assert "retry_policy" not in str(copies)


@pytest.mark.parametrize(
    ("models", "instances", "max_body_bytes", "most"),
    [
        (1, 1, 1_000_000, 32),
        (3, 2, 1_000_000, 64),
        (1, 2, 32 * 1024 * 1024, 16),
        (4, 2, 32 * 1024 * 1024, 4),
        (1, 2, 1024**3, 1),
    ],
)
def test_copies_under_way_are_bounded_by_workers_and_by_memory(
    models: int, instances: int, max_body_bytes: int, most: int
) -> None:
    settings = Settings(
        project_dir=PROJECT,
        gateway=GatewaySettings(max_body_bytes=max_body_bytes),
        engine=EngineSettings(workers=2, batch_size=8),
    )
    rollouts = [
        ModelRoute(f"model{number}", {1: 100}, (1, 2), shadow=Shadow(2, 20))
        for number in range(models)
    ]
    routing = Routing([*rollouts, ModelRoute("calm", {1: 100}, (1,))], (ONE, OTHER)[:instances])
    bounds = [
        threshold["max_requests"]
        for cluster in envoy_clusters.clusters(routing, settings)
        if cluster["name"].endswith(".copies")
        for threshold in cluster["circuit_breakers"]["thresholds"]
    ]
    assert bounds == [most] * models


def test_what_copies_meet_on_the_way_to_an_engine_is_what_requests_meet() -> None:
    bootstrap = envoy_config.bootstrap(TEMPLATE, _settings(), Path("/dynamic"))
    requests, copies = (
        _http(bootstrap, name)["http_filters"][-1]["typed_config"]["upstream_http_filters"]
        for name in ("predictions", "shadow")
    )
    assert requests == copies


def test_retries_go_elsewhere_where_there_is_an_elsewhere() -> None:
    def policy(*instances: Instance) -> dict[str, Any]:
        config = envoy_routes.routes(Routing((), instances), _settings(retries=2))
        return dict(config["virtual_hosts"][0]["retry_policy"])

    assert policy(ONE)["num_retries"] == 2
    assert "retry_host_predicate" not in policy(ONE)
    assert "previous_hosts" in str(policy(ONE, OTHER)["retry_host_predicate"])
    assert headers.RETRY_AFTER in str(policy(ONE)["rate_limited_retry_back_off"])
    on_triton = replace(ONE, engine="triton")
    assert policy(on_triton)["num_retries"] == 2 + envoy_routes.MORE_RETRIES


def test_a_refused_version_is_told_which_ones_there_are() -> None:
    bodies = [
        route["direct_response"]["body"]["inline_string"]
        for route in _routes(ModelRoute("tagger", {2: 100}, (3, 1, 2)))
        if route.get("direct_response", {}).get("status") == 404
    ]
    assert any("1, 2, 3" in json.loads(body)["error"]["message"] for body in bodies)


def _http(bootstrap: dict[str, Any], name: str = "predictions") -> dict[str, Any]:
    listeners = bootstrap["static_resources"]["listeners"]
    (listener,) = [each for each in listeners if each["name"] == name]
    return dict(listener["filter_chains"][0]["filters"][0]["typed_config"])


def _filter(bootstrap: dict[str, Any], name: str) -> dict[str, Any]:
    filters = [
        f for f in _http(bootstrap)["http_filters"] if f["name"] == f"envoy.filters.http.{name}"
    ]
    return dict(filters[0])


SENT_TOKENS = {
    'Bearer a "key" # 1': True,
    'bearer  a "key" # 1': True,
    'Bearer A "key" # 1': False,
    'Bearer a "key" # 12': False,
    'Basic a "key" # 1': False,
    'a "key" # 1': False,
    "Bearer ": False,
}


def test_keys_and_rate_are_off_unless_set() -> None:
    off = envoy_config.bootstrap(TEMPLATE, _settings(), Path("/dynamic"))
    assert _filter(off, "rbac")["disabled"] is True
    assert _filter(off, "local_ratelimit")["disabled"] is True
    settings = _settings(host="0.0.0.0", api_keys=('a "key" # 1',), rate_limit_per_s=7)
    on = envoy_config.bootstrap(TEMPLATE, settings, Path("/dynamic"))
    assert _filter(on, "rbac")["disabled"] is False
    rules = _filter(on, "rbac")["typed_config"]["rules"]
    as_key, as_token = rules["policies"]["with_a_key"]["principals"]
    assert as_key == {"header": {"name": "x-api-key", "string_match": {"exact": 'a "key" # 1'}}}
    pattern = as_token["header"]["string_match"]["safe_regex"]["regex"]
    assert as_token["header"]["name"] == "authorization"
    assert [bool(re.fullmatch(pattern, token)) for token in SENT_TOKENS] == list(
        SENT_TOKENS.values()
    )
    assert _filter(on, "local_ratelimit")["disabled"] is False
    assert _filter(on, "local_ratelimit")["typed_config"]["token_bucket"]["max_tokens"] == 7


OF_0_1_0 = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: ${admin_port}}}}"


@pytest.mark.parametrize("template", [TEMPLATE, OF_0_1_0])
def test_the_admin_page_is_a_socket_of_the_owner_s_whatever_a_template_says(template: str) -> None:
    settings = _settings(host="0.0.0.0", api_keys=("key",))
    bootstrap = envoy_config.bootstrap(template, settings, Path("/dynamic"))
    socket = {"path": str(settings.socket_dir / "gateway.sock"), "mode": 0o600}
    assert bootstrap["admin"] == {"address": {"pipe": socket}}


def test_metrics_are_on_loopback_whatever_the_gateway_listens_on() -> None:
    settings = _settings(host="0.0.0.0", api_keys=("key",))
    bootstrap = envoy_config.bootstrap(TEMPLATE, settings, Path("/dynamic"))
    addresses = {
        listener["name"]: listener["address"]["socket_address"]["address"]
        for listener in bootstrap["static_resources"]["listeners"]
        if "address" in listener
    }
    assert addresses == {"predictions": "0.0.0.0", "metrics": "127.0.0.1"}


def test_what_is_validated_holds_what_is_watched() -> None:
    bootstrap = envoy_config.bootstrap(TEMPLATE, _settings(), Path("/dynamic"))
    before = yaml.safe_dump(bootstrap)
    routing = Routing([ModelRoute("tagger", {1: 100}, (1,))], [ONE])
    routes = envoy_routes.routes(routing, _settings())
    clusters = envoy_clusters.clusters(routing, _settings())
    whole = envoy_config.inlined(bootstrap, routes, clusters)
    assert yaml.safe_dump(bootstrap) == before
    assert "dynamic_resources" not in whole and "rds" not in _http(whole)
    assert _http(whole)["route_config"]["virtual_hosts"] == routes["virtual_hosts"]
    names = [cluster["name"] for cluster in whole["static_resources"]["clusters"]]
    assert names == ["admin", "tagger-1"]


@pytest.mark.parametrize("template", ["a: ${unknown}", "a: $", "a: [", "- just\n- a list"])
def test_a_template_that_cannot_be_used_is_told(template: str) -> None:
    with pytest.raises(SettingsError, match=r"envoy\.yaml"):
        envoy_config.bootstrap(template, _settings(), Path("/dynamic"))
