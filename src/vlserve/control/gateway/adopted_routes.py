"""The paths of models with adopted versions, as their clients know them: by former name and
version, with whatever follows the version, and for explanations. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.prediction_routes import METHODS, Form, no_version, prediction_paths
from vlserve.control.gateway.route_parts import (
    asked_with,
    large_body,
    with_slash,
    with_torchserves_errors,
)
from vlserve.control.gateway.torchserve_routes import no_explanations
from vlserve.control.gateway.v1_routes import PREFIX as V1_PREFIX
from vlserve.control.gateway.v1_routes import V1
from vlserve.settings_sections import GatewaySettings

_AS_IT_IS = re.compile(r"[A-Za-z0-9._~-]+")
"""A name that stands in a path as it is."""


def adopted_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes by the model's own name, to come before those of every model; none where
    no version was adopted."""
    return prediction_paths(route, gateway, _form(route, route.model)) if route.adopted else []


def former_paths(models: Sequence[ModelRoute], gateway: GatewaySettings) -> list[Config]:
    """Return the routes by former names, to come after all names that are a model's own."""
    return [
        with_torchserves_errors(path)
        for name, route in former_names(models).items()
        for path in (
            *prediction_paths(route, gateway, _form(route, name)),
            *prediction_paths(route, gateway, _v1(name)),
            {
                "match": asked_with(METHODS, {"path_separated_prefix": f"/predictions/{name}"}),
                **no_version(route),
            },
            *(
                {"match": {"path_separated_prefix": path}, **no_explanations(route)}
                for path in (f"/explanations/{name}", f"{V1_PREFIX}{name}:explain")
            ),
        )
    ]


def large_bodies(models: Sequence[ModelRoute], gateway: GatewaySettings) -> list[Config]:
    """Return the routes that refuse a large body in TorchServe's words, to come before those that
    do so in ours alone."""
    names = [route.model for route in models if route.adopted] + list(former_names(models))
    return [
        with_torchserves_errors(large_body({"path_separated_prefix": path}, gateway))
        for name in names
        for path in (f"/predictions/{name}", f"/explanations/{name}")
    ]


def former_names(models: Sequence[ModelRoute]) -> Mapping[str, ModelRoute]:
    """Return former name -> the model that has it now. A model's own name comes first, and of two
    models of one former name the first."""
    own = {route.model for route in models}
    former: dict[str, ModelRoute] = {}
    for route in models:
        for version in sorted(route.adopted):
            name = route.adopted[version].name
            if name not in own and _AS_IT_IS.fullmatch(name):
                former.setdefault(name, route)
    return former


def _form(route: ModelRoute, name: str) -> Form:
    """Return how clients of TorchServe ask for a model by ``name``. Explanations are the adopted
    handlers' alone: while another version has weight, they are asked for by version."""
    explanations = ({"path": f"/explanations/{name}"}, {"path": f"{V1_PREFIX}{name}:explain"})
    versions = {version for version, weight in route.weights.items() if weight}
    of_model = (
        *with_slash(f"/predictions/{name}"),
        *(explanations if versions <= route.adopted.keys() else ()),
    )
    by_version = {
        version: tuple(_of_version(name, _called(route, version), version in route.adopted))
        for version in route.versions
    }
    return Form(
        of_model=lambda model: of_model,
        of_version=lambda model, version: by_version[version],
        methods=METHODS,
    )


def _v1(name: str) -> Form:
    """Return how clients of KServe's V1 ask for a model by its former ``name``."""
    return replace(V1, of_model=lambda model: with_slash(f"{V1_PREFIX}{name}:predict"))


def _called(route: ModelRoute, version: int) -> Iterator[str]:
    """Yield what paths call a version: its number, and the former one, unless it is another's
    number. Of two versions of one former version the lower has it."""
    yield str(version)
    if version not in route.adopted:
        return
    former = route.adopted[version].version
    first = min(each for each in route.adopted if route.adopted[each].version == former)
    numbers = {str(each) for each in route.versions}
    if version == first and former not in numbers and _AS_IT_IS.fullmatch(former):
        yield former


def _of_version(name: str, numbers: Iterator[str], explains: bool) -> Iterator[Config]:
    for number in numbers:
        yield {"path": f"/predictions/{name}/{number}"}
        yield {"prefix": f"/predictions/{name}/{number}/"}
        if explains:
            yield {"path": f"/explanations/{name}/{number}"}
