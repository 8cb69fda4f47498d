"""S2 and M2: their graphs exported, captions written over them, their checkpoints read."""

import json
import random
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.tiny_exports import Exports, Tiny, graph_cases, tiny
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.models.resnet import ResNet, ResNetConfig
from vlserve.runtime.decoding import BeamSearch, CachedStep, Hypothesis, beam_search
from vlserve.runtime.types import Arrays, Backend
from vlserve.testing.eager import EagerBackend

RECIPES = {name: load_recipe(name, Path(__file__).parents[3] / "export") for name in ("s2", "m2")}
WORDS = ["<unk>", "<pad>", "<bos>", "<eos>", "a", "cat", "猫", "sits", "on", "the", "red", "mat"]
PAD, START, END = 1, 2, 3
LAYERS = {
    "layers": 2,
    "hidden": 12,
    "heads": 2,
    "key_size": 5,
    "value_size": 7,
    "intermediate": 20,
}
RESNET = {"layers": (1, 1), "width": 4}
"""8 features a cell."""
GRID = {
    "checkpoint": "resnet.safetensors",
    "image": {"height": 24, "width": 32},
    "resnet": RESNET,
}
"""3 x 4 cells."""
POSITIONS = 30
FIELDS: dict[str, Any] = {"words": WORDS, "heads": 2}
SIZES: dict[str, Any] = FIELDS | {
    "encoder": LAYERS | {"layers": 3},
    "decoder": LAYERS,
    "positions": POSITIONS,
    "features": 8,
    "writing": {"beams": 3, "max_length": 10},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "s2": ("s2", {"clusters": 3, "cells": 12}),
    "m2": ("m2", {"slots": 4, "max_regions": 20}),
    "m2_padded": ("m2", {"slots": 4, "max_regions": 20, "padded_to": 20}),
}
GRAPHS = {
    "s2": ("encoder", "step", "features"),
    "m2": ("encoder", "step"),
    "m2_padded": ("encoder",),
}
"""What is the same graph is not exported twice."""
State = dict[str, torch.Tensor]


def of(name: str, **options: Any) -> Tiny:
    family, config = MODELS[name]
    return tiny(RECIPES[family], SIZES | config | options)


@pytest.fixture(scope="module")
def exports() -> Exports:
    models = {name: of(name, grid=GRID) for name in MODELS}
    for model in models.values():
        decoder: Any = model.network.decoder
        decoder.fc.weight[END] *= 3  # so that some texts end early
    return Exports(models)


@graph_cases(GRAPHS, onnx_of=("m2_padded",))
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def visual_of(model: Tiny, batch: int) -> Arrays:
    sizes = {"batch": batch, "regions": 6}
    tensors = model.recipe.example("encoder", model.config, sizes, seed=5)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def one_of(arrays: Arrays, item: int) -> Arrays:
    return {name: array[item : item + 1] for name, array in arrays.items()}


def write(
    model: Tiny, visual: Arrays, encoder: Backend, step: Backend, folder: Path
) -> list[list[Hypothesis]]:
    options = model.recipe.serve(model.config, folder).options
    fields = BeamSearch.__dataclass_fields__
    rules = BeamSearch(**{name: options[name] for name in fields if name in options})
    prompt = np.tile(np.array(options["prompt_ids"]), (len(visual["visual"]), 1))
    memory = encoder.run(visual)
    return beam_search(CachedStep(step, model.plans["step"].inputs, memory), prompt, rules)


def assert_same(captions: list[list[Hypothesis]], other: list[list[Hypothesis]]) -> None:
    for text, expected in zip(chain(*captions), chain(*other), strict=True):
        np.testing.assert_array_equal(text.token_ids, expected.token_ids)
        np.testing.assert_allclose(text.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("family", RECIPES)
def test_captions_are_the_same_over_exported_graphs(
    family: str, exports: Exports, tmp_path: Path
) -> None:
    model = exports.models[family]
    visual = visual_of(model, 4)
    encoder, step = (EagerBackend(model.plans[graph]) for graph in ("encoder", "step"))
    expected = write(model, visual, encoder, step, tmp_path)
    graphs = [exports.graph(family, graph, "torchscript") for graph in ("encoder", "step")]
    assert_same(write(model, visual, graphs[0], graphs[1], tmp_path), expected)
    assert len({len(text.token_ids) for text in chain(*expected)}) > 1
    alone = [
        write(model, one_of(visual, item), encoder, step, tmp_path)[0]
        for item in range(len(expected))
    ]
    assert_same(alone, expected)


@pytest.mark.parametrize("family", RECIPES)
def test_words_written_with_a_cache_are_those_of_the_whole_text(family: str) -> None:
    """Also after padding, which a beam may hold like any word."""
    model = of(family)
    visual = visual_of(model, 2)
    memory = EagerBackend(model.plans["encoder"]).run(visual)
    memory_tensors = tuple(
        torch.from_numpy(memory[f"memory_{name}"]) for name in ("key", "value", "mask")
    )
    ids = torch.tensor([[[START, 5, PAD, 7, 8]], [[START, 9, 4, PAD, PAD]]])
    decoder: Any = model.network.decoder
    step = CachedStep(EagerBackend(model.plans["step"]), model.plans["step"].inputs, memory)
    with torch.inference_mode():
        states, _, _ = decoder(ids, memory_tensors)
        whole = decoder.logits(states).numpy()
    cache: Any = {}
    for place in range(ids.shape[2]):
        logits, cache = step(ids[:, :, place : place + 1].numpy(), cache)
        np.testing.assert_allclose(logits, whole[:, :, place], atol=1e-5)
    other = ids.clone()
    other[:, :, 2] = 6
    with torch.inference_mode():
        other_logits = decoder.logits(decoder(other, memory_tensors)[0]).numpy()
    assert np.abs(other_logits[:, :, 3:] - whole[:, :, 3:])[0].max() > 1e-3


def test_s2_takes_padding_from_the_features_and_not_from_a_layer_norm() -> None:
    model = of("s2")
    visual = torch.rand(2, 12, 8)
    visual[1, 9:] = 0
    network: Any = model.network
    network.encoder.layer_norm.weight.zero_()
    network.encoder.layer_norm.bias.zero_()  # every output now sums to 0
    _, mask = network.encoder(visual)
    assert mask.sum(dim=1).tolist() == [12, 9]
    memory = EagerBackend(of("s2").plans["encoder"]).run({"visual": visual.numpy()})
    assert memory["memory_mask"].sum(axis=1).tolist() == [12 + 3, 9 + 3]


def test_m2_sees_the_padding_of_a_batch_only_as_the_zeros_of_its_training() -> None:
    own = np.random.default_rng(1).normal(size=(1, 5, 8)).astype(np.float32)
    noise = np.full((1, 4, 8), 7, dtype=np.float32)
    short: Arrays = {"visual": own, "visual_mask": np.ones((1, 5), dtype=np.int64)}
    batch: Arrays = {
        "visual": np.concatenate([own, noise], axis=1),
        "visual_mask": np.array([[1] * 5 + [0] * 4]),
    }
    for name, count in (("m2", 5), ("m2_padded", 20)):
        encoder = EagerBackend(of(name).plans["encoder"])
        alone, beside = encoder.run(short), encoder.run(batch)
        assert beside["memory_mask"].sum() == count
        for memory in ("memory_key", "memory_value"):
            left, right = alone[memory][..., :5, :], beside[memory][..., :5, :]
            np.testing.assert_allclose(left, right, atol=1e-5)
    padded = np.concatenate([own, np.zeros((1, 15, 8), dtype=np.float32)], axis=1)
    everything: Arrays = {"visual": padded, "visual_mask": np.ones((1, 20), dtype=np.int64)}
    original = EagerBackend(of("m2").plans["encoder"]).run(everything)
    ours = EagerBackend(of("m2_padded").plans["encoder"]).run(short)
    for name, array in original.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, err_msg=name)


def as_the_original_saves(state: State) -> dict[str, Any]:
    """What its training script writes, with states and schedules as they really are."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    parameter.sum().backward()
    optimizer.step()
    schedule.step()
    return {
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "numpy_rng_state": np.random.get_state(),
        "random_rng_state": random.getstate(),
        "epoch": 17,
        "val_loss": np.float32(2.5).item(),
        "val_cider": np.float64(1.31),
        "state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "patience": 0,
        "best_cider": np.float64(1.33),
        "best_test_cider": np.float64(1.335),
        "use_rl": True,
    }


def with_what_is_ignored(family: str, state: State) -> State:
    """The buffers of writing; s2 also has embeddings that nothing reads."""
    extra = {
        "decoder.running_mask_self_attention": torch.zeros(1, 1, 0, dtype=torch.uint8),
        "decoder.running_seq": torch.zeros(1, dtype=torch.int64),
    }
    for layer in range(2):
        for kind in ("keys", "values"):
            extra[f"decoder.layers.{layer}.self_att.running_{kind}"] = torch.zeros(0, 12)
    if family == "s2":
        extra |= {"word_emb.weight": torch.rand(12, 4), "pos_emb.weight": torch.rand(POSITIONS, 4)}
    return state | extra


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("family", RECIPES)
def test_the_file_of_the_original_training_is_the_same_network(
    family: str, zipped: bool, tmp_path: Path
) -> None:
    model = of(family)
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    file = tmp_path / "model.pth"
    content = as_the_original_saves(with_what_is_ignored(family, state))
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    (tmp_path / "words.json").write_text(json.dumps(dict(enumerate(WORDS))), encoding="utf-8")
    checkpoint = read_checkpoint(file)
    config = model.recipe.complete_config({"heads": 2}, checkpoint, tmp_path)
    assert config["decoder"] == LAYERS and config["words"] == WORDS
    network_state = load_network(model.recipe, checkpoint, config).state_dict()
    assert network_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(network_state[name], tensor), name


@pytest.mark.parametrize("family", RECIPES)
def test_a_grid_is_read_from_the_file_beside(family: str, tmp_path: Path) -> None:
    model = of(family)
    resnet = ResNet(ResNetConfig.model_validate(RESNET), classes=5)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    config_file = FIELDS | {"grid": {name: GRID[name] for name in ("checkpoint", "image")}}
    config_file |= {"cells": 12} if family == "s2" else {}
    state = dict(model.network.state_dict())
    config = model.recipe.complete_config(config_file, state, tmp_path)
    network_state = load_network(model.recipe, state, config).state_dict()
    for name, tensor in resnet.state_dict().items():
        assert name.startswith("fc.") or torch.equal(network_state[f"grid.{name}"], tensor)
    interface = model.recipe.serve(config, tmp_path)
    image = interface.image
    assert image is not None and (image.height, image.width) == (24, 32)
    assert interface.regions is not None and interface.regions.dim == 8

    smaller = config_file | {"grid": {"checkpoint": "resnet.safetensors", "image": {"height": 64}}}
    if family == "s2":
        with pytest.raises(ExportError, match="the grid has 224 cells, the network 12"):
            model.recipe.complete_config(smaller, state, tmp_path)
    save_file(ResNet(ResNetConfig(layers=(1,), width=4)).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ExportError, match="the grid has 4 features a cell, the network reads 8"):
        model.recipe.complete_config(
            config_file | {"grid": {"checkpoint": "other.pt"}}, state, tmp_path
        )
    for wrong, reason in (
        ({}, "grid of config.json must be like"),
        ({"checkpoint": "missing.pth"}, r"no checkpoint \S+missing.pth"),
        (GRID | {"resnet": {"width": 5}}, "width: config.json says 5, the checkpoint has 4"),
    ):
        with pytest.raises(ExportError, match=reason):
            model.recipe.complete_config(config_file | {"grid": wrong}, state, tmp_path)


def broken(family: str, change: Callable[[State], object]) -> State:
    copy = {name: tensor.clone() for name, tensor in of(family).network.state_dict().items()}
    change(copy)
    return copy


FOREIGN = {"resnet_model.conv1.weight": torch.rand(2), "fc.weight": torch.rand(2)}
REFUSALS: dict[str, tuple[str, State, dict[str, Any], str]] = {
    "another_family": (
        "s2",
        FOREIGN,
        {},
        "not a s2 checkpoint: missing decoder.word_emb.weight; unexpected resnet_model.conv1",
    ),
    "m2_for_s2": (
        "s2",
        broken("m2", lambda state: None),
        {},
        "not a s2 checkpoint: missing SP.centroids",
    ),
    "s2_for_m2": (
        "m2",
        broken("s2", lambda state: None),
        {},
        r"not a m2 checkpoint: missing \S+m_k; unexpected SP.centroids",
    ),
    "a_part_missing": (
        "m2",
        broken("m2", lambda state: state.pop("decoder.layers.1.fc_alpha2.bias")),
        {},
        "missing decoder.layers.1.fc_alpha2.bias",
    ),
    "a_part_too_many": (
        "s2",
        broken("s2", lambda state: state.update({"decoder.extra": torch.rand(2)})),
        {},
        "unexpected decoder.extra",
    ),
    "other_words": ("s2", broken("s2", lambda state: None), {"words": WORDS[1:]}, "words: there"),
    "other_sizes": (
        "m2",
        broken("m2", lambda state: None),
        {"slots": 40},
        "slots: config.json says 40, the checkpoint has 4",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_checkpoint_of_the_family_is_refused_with_the_reason(case: str) -> None:
    family, state, changes, reason = REFUSALS[case]
    recipe = RECIPES[family]
    with pytest.raises(CheckpointMismatch, match=reason):
        load_network(recipe, state, recipe.complete_config(FIELDS | changes, state, Path()))


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("s2", {"heads": 3}, "heads: 3 do not divide the 10 keys and 14 values"),
        ("s2", {"words": "missing.json"}, r"words missing\.json cannot be read"),
        ("s2", {"words": {"0": "a", "2": "b"}}, "words: no word has the index '1'"),
        ("s2", {"words": 5}, "words must be a list"),
        ("s2", {"end_id": 12}, "is not below 12 words"),
        ("s2", {"writing": {"max_length": 31}}, "max_length is over the 30 positions"),
        ("m2", {"padded_to": 49, "max_regions": 50}, "padded_to is under the 50 regions"),
        ("m2", {"colour": "red"}, "colour: Extra inputs"),
        ("m2", {"task": "answer"}, "task: "),
    ],
)
def test_a_config_that_cannot_work_says_why(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = of(family)
    with pytest.raises(ExportError, match=reason):
        model.recipe.complete_config(FIELDS | changes, dict(model.network.state_dict()), tmp_path)


@pytest.mark.parametrize("family", RECIPES)
def test_what_the_task_is_told(family: str, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    model = of(family)
    interface = model.recipe.serve(model.config, tmp_path / "assets")
    assert (interface.task, interface.image, interface.text) == ("caption", None, None)
    assert interface.regions is not None
    assert interface.regions.max_regions == (12 if family == "s2" else 20)
    words = json.loads((tmp_path / interface.options["words"]).read_text(encoding="utf-8"))
    assert words == WORDS
    assert {name: value for name, value in interface.options.items() if name != "words"} == {
        "prompt_ids": [START],
        "end_id": END,
        "beams": 3,
        "max_length": 10,
        "min_length": 0,
        "length_penalty": 0.0,
        "finished": "stay",
        "merge_repeats": True,
    }
