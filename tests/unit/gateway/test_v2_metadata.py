"""What V2 says of a model: by its task and its archive's manifest."""

from typing import Any

import pytest

from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.v2_metadata import model_metadata
from vlserve.runtime.manifest import ImageInput, Manifest, RegionInput, TextInput

IMAGE = ImageInput(height=8, width=8)
TEXT = TextInput(tokenizer="characters", file="words.json", max_length=9)
REGIONS = RegionInput(dim=16, max_regions=9, boxes=True)


def manifest(**about: Any) -> Manifest:
    return Manifest.model_construct(**({"graphs": {}} | about))


def names(metadata: dict[str, Any], kind: str) -> list[str]:
    return [tensor["name"] for tensor in metadata[kind]]


@pytest.mark.parametrize(
    ("about", "inputs"),
    [
        ({"task": "tag", "image": IMAGE, "text": TEXT}, ["image", "text"]),
        ({"task": "tag", "text": TEXT}, ["text"]),
        ({"task": "caption", "image": IMAGE, "text": TEXT}, ["image"]),
        ({"task": "reason", "image": IMAGE, "text": TEXT}, ["image", "image2", "text"]),
        ({"task": "ground", "regions": REGIONS, "text": TEXT}, ["features", "boxes", "text"]),
        (
            {"task": "answer", "image": IMAGE, "regions": REGIONS, "text": TEXT},
            ["image", "features", "boxes", "text"],
        ),
    ],
)
def test_inputs_are_what_the_task_reads_of_the_model(
    about: dict[str, Any], inputs: list[str]
) -> None:
    route = ModelRoute("m", {1: 100}, (1,), manifests={1: manifest(**about)})
    assert names(model_metadata(route), "inputs") == inputs


def test_the_version_with_most_weight_speaks_for_the_model() -> None:
    manifests = {1: manifest(task="tag", text=TEXT), 2: manifest(task="embed", text=TEXT)}
    split = ModelRoute("m", {2: 25, 1: 75}, (1, 2), manifests=manifests)
    assert names(model_metadata(split), "outputs") == ["tag", "score"]
    assert names(model_metadata(split, 2), "outputs") == ["embedding"]
    fresh = ModelRoute("m", {}, (1, 2), manifests=manifests)
    assert names(model_metadata(fresh), "outputs") == ["embedding"]


def test_routes_without_manifests_are_the_same_routes() -> None:
    route = ModelRoute("m", {1: 100}, (1,), manifests={1: manifest(task="tag")})
    assert route == ModelRoute("m", {1: 100}, (1,))
    assert model_metadata(ModelRoute("m", {1: 100}, (1,)))["inputs"] == []
