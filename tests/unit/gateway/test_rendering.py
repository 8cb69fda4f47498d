"""A routing is rendered once, and anew when anything changed that stands in its text."""

from dataclasses import replace
from pathlib import Path

import pytest

from support.version_records import adopted_manifest
from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway.rendering import Renderer
from vlserve.settings import Settings

ENGINE = Instance("engine-0", "127.0.0.1", 8180, "token-0")
TAGGER = ModelRoute("tagger", {2: 20, 1: 80}, (1, 2))


def test_the_same_routing_is_rendered_once(tmp_path: Path) -> None:
    renderer = Renderer(Settings(project_dir=tmp_path))

    first = renderer.render(Routing((TAGGER,), (ENGINE,)))

    assert renderer.render(Routing((replace(TAGGER),), (replace(ENGINE),))) is first


@pytest.mark.parametrize(
    "other",
    [
        Routing((replace(TAGGER, weights={1: 80, 2: 20}),), (ENGINE,)),
        Routing((replace(TAGGER, manifests={1: adopted_manifest("Tagger")}),), (ENGINE,)),
        Routing((TAGGER,), (replace(ENGINE, token="token-1"),)),
        Routing((TAGGER,), (ENGINE,), unready="no engine answers"),
    ],
    ids=["order-of-weights", "manifests", "token", "unready"],
)
def test_another_routing_is_rendered_as_if_it_were_the_first(
    tmp_path: Path, other: Routing
) -> None:
    settings = Settings(project_dir=tmp_path)
    renderer = Renderer(settings)
    first = renderer.render(Routing((TAGGER,), (ENGINE,)))

    result = renderer.render(other)

    assert result == Renderer(settings).render(other)
    assert (result.clusters_text, result.routes_text) != (
        first.clusters_text,
        first.routes_text,
    )
