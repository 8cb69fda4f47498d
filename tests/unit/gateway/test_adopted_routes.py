"""Which paths lead to adopted versions."""

from dataclasses import replace
from typing import Any

from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.adopted_routes import adopted_paths, former_names, former_paths
from vlserve.runtime.manifest import Adopted, Manifest
from vlserve.settings_sections import GatewaySettings

GATEWAY = GatewaySettings()


def _route(model: str, former_names: dict[int, tuple[str, str]], *others: int) -> ModelRoute:
    versions = sorted({*former_names, *others})
    manifests = {
        version: Manifest.model_construct(
            adopted=Adopted(name=name, version=former, sha256="0" * 64, handler="h.py")
        )
        for version, (name, former) in former_names.items()
    }
    return ModelRoute(model, {versions[0]: 100}, versions, manifests=manifests)


def _to_versions(paths: list[dict[str, Any]]) -> dict[str, str]:
    """Return path -> cluster, of the routes that lead to one version by their path alone."""
    return {
        path["match"].get("path") or path["match"]["prefix"]: path["route"]["cluster"]
        for path in paths
        if "cluster" in path.get("route", {}) and len(path["match"]["headers"]) == 1
    }


def test_a_version_is_called_by_its_number_and_by_its_former_one() -> None:
    paths = _to_versions(adopted_paths(_route("bert", {3: ("BERT", "1.0")}, 4), GATEWAY))

    assert paths["/predictions/bert/3"] == "bert-3"
    assert paths["/predictions/bert/3/"] == "bert-3"
    assert paths["/predictions/bert/1.0"] == "bert-3"
    assert paths["/predictions/bert/1.0/"] == "bert-3"
    assert paths["/explanations/bert/1.0"] == "bert-3"
    assert paths["/predictions/bert/4"] == "bert-4"


def test_only_adopted_versions_are_asked_for_explanations() -> None:
    def by_weight(weights: dict[int, int]) -> set[str]:
        route = replace(_route("bert", {1: ("BERT", "1.0")}, 2), weights=weights)
        paths = [*adopted_paths(route, GATEWAY), *former_paths([route], GATEWAY)]
        assert "/explanations/bert/1" in _to_versions(paths)
        assert "/explanations/bert/2" not in _to_versions(paths)
        weighted_paths = [path for path in paths if "weighted_clusters" in path.get("route", {})]
        return {path["match"]["path"] for path in weighted_paths if "expl" in path["match"]["path"]}

    assert (
        by_weight({1: 100})
        == by_weight({2: 0, 1: 100})
        == {
            "/explanations/bert",
            "/v1/models/bert:explain",
            "/explanations/BERT",
            "/v1/models/BERT:explain",
        }
    )
    assert by_weight({2: 5, 1: 95}) == set()


def test_a_former_version_that_is_a_number_of_ours_is_ours() -> None:
    route = _route("bert", {1: ("BERT", "2"), 2: ("BERT", "2")})

    assert _to_versions(adopted_paths(route, GATEWAY))["/predictions/bert/2"] == "bert-2"


def test_of_two_versions_of_one_former_version_the_lower_has_it() -> None:
    route = _route("bert", {1: ("BERT", "1.0"), 2: ("BERT", "1.0")})

    assert _to_versions(adopted_paths(route, GATEWAY))["/predictions/bert/1.0"] == "bert-1"


def test_a_model_of_ours_alone_has_no_other_paths() -> None:
    assert adopted_paths(_route("bert", {}, 1), GATEWAY) == []


def test_a_former_name_is_a_models_that_is_not_called_so_itself() -> None:
    routes = [
        _route("a", {1: ("BERT", "1.0")}),
        _route("b", {1: ("BERT", "1.0")}),
        _route("c", {1: ("a", "1.0")}),
        _route("d", {1: ("with space", "1.0")}),
    ]

    assert {name: route.model for name, route in former_names(routes).items()} == {"BERT": "a"}


def test_a_former_name_is_weighted_as_the_new_one() -> None:
    paths = former_paths([_route("bert", {1: ("BERT", "1.0")})], GATEWAY)

    weighted_paths = [path for path in paths if "weighted_clusters" in path.get("route", {})]
    assert {path["match"]["path"] for path in weighted_paths} == {
        "/predictions/BERT",
        "/predictions/BERT/",
        "/explanations/BERT",
        "/v1/models/BERT:predict",
        "/v1/models/BERT:predict/",
        "/v1/models/BERT:explain",
    }
