"""The feature extractor against torchvision's and transformers' numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from support.golden_cases import Case, assert_close, cases, key_shapes
from support.resnet_cases import described, golden_weights
from vlserve.exporter.checkpoint import load_into
from vlserve.exporter.convert import load_network
from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import load_recipe
from vlserve.models.keys import is_ignored
from vlserve.models.resnet import HEADS, ResNet, ResNetConfig

RECIPE = load_recipe("resnet", Path(__file__).parents[2] / "export")
TORCHVISION = cases("resnet")
TRANSFORMERS = [case for case in cases("hf") if case.config["source"]["class"].startswith("ResNet")]
STAGES = {"stem": "maxpool", "hidden_0": "maxpool", "pooled": "avgpool", "pooler_output": "avgpool"}
"""The golden names of outputs that our network calls otherwise."""


def weights(case: Case) -> dict[str, Tensor]:
    if case in TRANSFORMERS:
        arrays = case.arrays("state_dict")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    config, classes = described(case)
    return golden_weights(case, ResNet(ResNetConfig.model_validate(config), classes))


def stage(name: str, last: str) -> str:
    """Our name of the module whose output the case calls ``name``."""
    if name == "last_hidden_state":
        return last
    return STAGES.get(name) or re.sub(r"^hidden_(\d+)$", r"layer\1", name)


@pytest.mark.parametrize("case", [*TORCHVISION, *TRANSFORMERS], ids=str)
def test_every_output_equals_the_original(case: Case) -> None:
    state = weights(case)
    (image,) = case.arrays("inputs").values()
    sizes = case.config["hyperparameters"] if case in TRANSFORMERS else {}
    sizes = sizes | {"image": {"height": image.shape[2], "width": image.shape[3]}}
    config = RECIPE.complete_config(sizes, state, case.folder)
    network: Any = load_network(RECIPE, state, config)
    reference, layer_outputs = case.arrays("outputs"), {}
    for name in reference.keys() - {"logits"}:
        module = network.get_submodule(stage(name, network.stages[-1]))
        module.register_forward_hook(
            lambda _, __, out, name=name: layer_outputs.update({name: out})
        )
    (plan,) = RECIPE.graphs(network, config).values()
    outputs = run_eager(plan, {"image": torch.from_numpy(image)})
    if "logits" in reference:  # of the head, which features do without
        with torch.inference_mode():
            pooled = network(torch.from_numpy(image))
        layer_outputs["logits"] = torch.addmm(state["fc.bias"], pooled, state["fc.weight"].T)
    for name, expected in reference.items():
        assert_close(
            layer_outputs[name].numpy().reshape(expected.shape), expected, f"{case} {name}"
        )
    last = next(x for name, x in reference.items() if stage(name, "") in ("", network.stages[-1]))
    assert_close(outputs["image_states"], by_cell(last), f"{case} image_states")
    pooled = last.mean(axis=(2, 3))
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    assert_close(outputs["image_embedding"], unit, f"{case} image_embedding")


def by_cell(feature_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row: (batch, features, rows, columns) -> (batch, cells, features)."""
    _, _, rows, columns = feature_map.shape
    cells = [feature_map[:, :, row, column] for row in range(rows) for column in range(columns)]
    return np.stack(cells, axis=1)


@pytest.mark.parametrize("case", TORCHVISION, ids=str)
def test_a_network_with_its_head_equals_the_original(case: Case) -> None:
    config, classes = described(case)
    network = ResNet(ResNetConfig.model_validate(config), classes).eval()
    load_into(network, golden_weights(case, network), "resnet")
    (image,) = case.arrays("inputs").values()
    with torch.inference_mode():
        logits = network(torch.from_numpy(image))
    assert_close(logits.numpy(), case.arrays("outputs")["logits"], f"{case} logits")


def test_every_key_of_the_published_resnet18_is_loaded_or_ignored() -> None:
    shapes = key_shapes("resnet18")
    state = {name: torch.rand(shape) for name, shape in shapes.items()}
    config = RECIPE.complete_config({}, state, Path())
    assert (config["resnet"]["block"], config["resnet"]["layers"]) == ("BasicBlock", [2, 2, 2, 2])
    network_state = load_network(RECIPE, state, config).state_dict()
    ignored_names = {name for name in shapes if is_ignored(name, HEADS)}
    assert ignored_names == {"fc.weight", "fc.bias"}
    assert network_state.keys() == shapes.keys() - ignored_names
    for name, tensor in network_state.items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
