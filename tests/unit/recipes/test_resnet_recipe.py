"""The feature extractor: its graph exported, its checkpoints read, in both layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_exports import Exports, Tiny, graph_cases
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("resnet", Path(__file__).parents[3] / "export")
IMAGE = {"height": 40, "width": 72}
SIZES: dict[str, dict[str, Any]] = {
    "basic": {"layers": (1, 2, 1, 1), "width": 4},
    "bottleneck": {"block": "Bottleneck", "layers": (1, 1, 2), "width": 6, "channels": (4, 5, 7)},
}


@pytest.fixture(scope="module")
def exports() -> Exports:
    return Exports({name: of(name) for name in SIZES})


def of(name: str, image: dict[str, int] = IMAGE) -> Tiny:
    """With the weights that training begins with; larger ones grow from layer to layer."""
    torch.manual_seed(0)
    config = {"image": image, "resnet": SIZES[name]}
    return Tiny(RECIPE, config, RECIPE.build(config).eval().requires_grad_(False))


@graph_cases(dict.fromkeys(SIZES, ("image",)), onnx_of=("bottleneck",))
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def test_an_image_of_any_size_has_as_many_cells_as_the_manifest_says() -> None:
    for height, width, cells in ((224, 224, 49), (33, 31, 2), (1, 65, 3)):
        model = of("basic", {"height": height, "width": width})
        example = RECIPE.example("image", model.config, {"batch": 2}, 0)
        outputs = run_eager(model.plans["image"], example)
        assert outputs["image_states"].shape == (2, cells, 32)
        assert model.plans["image"].outputs[0].dims == ("batch", cells, 32)
        norms = torch.from_numpy(outputs["image_embedding"]).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2))


@pytest.mark.parametrize("in_first_stage", [False, True], ids=["", "first_stage"])
@pytest.mark.parametrize("in_bottleneck", [False, True], ids=["", "in_bottleneck"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_transformers_networks_of_every_kind_give_the_same_features(
    block: str, in_bottleneck: bool, in_first_stage: bool
) -> None:
    torch.manual_seed(3)
    from transformers import ResNetConfig as TheirConfig
    from transformers import ResNetForImageClassification

    config = TheirConfig(
        embedding_size=6,
        hidden_sizes=[8, 12, 20],
        depths=[1, 2, 1],
        layer_type=block,
        downsample_in_first_stage=in_first_stage,
        downsample_in_bottleneck=in_bottleneck,
    )
    theirs = ResNetForImageClassification(config).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    state, config_file = dict(theirs.state_dict()), {**config.to_dict(), "image": IMAGE}
    complete = RECIPE.complete_config(config_file, state, Path())
    network: Any = load_network(RECIPE, state, complete)
    image = torch.rand(2, 3, 40, 72)
    with torch.inference_mode():
        expected = theirs.resnet(image).last_hidden_state
        torch.testing.assert_close(network.feature_map(image), expected)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another_family": (
        {"bert.embeddings.weight": torch.rand(2)},
        {},
        "not a resnet checkpoint: missing conv1.weight, bn1.weight.*; unexpected bert.embeddings",
    ),
    "a_part_too_many": ({"layer1.0.se.weight": torch.rand(2)}, {}, "unexpected layer1.0.se.weight"),
    "other_sizes": ({}, {"resnet": {"width": 64}}, "width: config.json says 64, the checkpoint"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_resnet_checkpoint_is_refused_with_the_reason(case: str) -> None:
    extra, config_file, reason = REFUSALS[case]
    state = {} if case == "another_family" else dict(of("basic").network.state_dict())
    with pytest.raises(CheckpointMismatch, match=reason):
        load_network(
            RECIPE, state | extra, RECIPE.complete_config(config_file, state | extra, Path())
        )


def test_a_config_that_cannot_work_says_why() -> None:
    state = dict(of("basic").network.state_dict())
    for config_file, reason in (
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"image": {"height": 0}}, "image.height: "),
        ({"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act is gelu, not relu"),
    ):
        with pytest.raises(ExportError, match=reason):
            RECIPE.complete_config(config_file, state, Path())
