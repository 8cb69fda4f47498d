"""The ResNet half against torchvision's numbers, the whole tagger against the plain formulas."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import Case, assert_close, cases, key_shapes
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from vlserve.exporter.checkpoint import load_into
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("resnet_gru", Path(__file__).parents[2] / "export")
NETWORK: ModuleType = sys.modules[type(RECIPE).__module__]
STAGES = {"stem": "maxpool", "pooled": "avgpool"}
"""The golden names of outputs that our network calls otherwise."""

LABELS = ["a", "b", "c", "d", "e"]
CONFIG: dict[str, Any] = {
    "labels": LABELS,
    "vocabulary": {chr(ord("a") + index): index + 2 for index in range(26)},
    "max_length": 15,
    "unknown_id": 1,
    "image": {"height": 40, "width": 32},
    "hidden": 16,
    "embedding_size": 8,
    "resnet": {"layers": [1, 2, 1, 1], "width": 8},
}


def described(case: Case) -> tuple[dict[str, Any], int]:
    """A case's ResNetConfig and number of classes, from its hyperparameters or its class."""
    said = case.config.get("hyperparameters", {})
    written = re.search(r"ResNet\((\w+), *\[([\d, ]+)\]", case.config["source"]["class"])
    block = said.get("block") or (written and written[1])
    layers = said.get("layers") or (written and [int(n) for n in written[2].split(",")])
    classes = re.search(r"num_classes=(\d+)", case.config["source"]["class"])
    count = said.get("num_classes") or (int(classes[1]) if classes else 1000)
    width = 64 // said.get("width_divisor", 1)
    return {"block": block, "layers": layers, "width": width}, count


def by_formula(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a case that stores none: config.json's weights_formula, with its numbers."""
    formula = case.config["weights_formula"]
    number = r"([\d.]+)"
    a, b = _numbers(rf"sin\({number}\*j\+{number}\*k\)", formula)
    (variance,) = _numbers(rf"running_var: 1\+{number}\*s", formula)
    (mean,) = _numbers(rf"running_mean: {number}\*s", formula)
    scale, shift = _numbers(rf"weight -> 1\+{number}\*s, else {number}\*s", formula)
    (gain,) = _numbers(rf"s\*sqrt\({number}/numel", formula)
    named = re.search(r"keys/([\w.-]+)\.json", formula)
    assert named is not None
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(key_shapes(named[1]).items()) == list(shapes.items())
    weights = {}
    for k, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        s = np.sin(a * np.arange(size, dtype=np.float64) + b * k)
        if name.endswith("num_batches_tracked"):
            values = np.zeros(size)
        elif name.endswith("running_var"):
            values = 1 + variance * s
        elif name.endswith("running_mean"):
            values = mean * s
        elif len(shape) >= 2:
            values = s * np.sqrt(gain / (size / shape[0]))
        else:
            values = 1 + scale * s if name.endswith("weight") else shift * s
        weights[name] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
    return weights


def _numbers(pattern: str, formula: str) -> list[float]:
    found = re.search(pattern, formula)
    assert found is not None, f"weights_formula has no {pattern}: {formula}"
    return [float(value) for value in found.groups()]


def golden_weights(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    stored = case.arrays("state_dict")
    if not stored:
        return by_formula(case, network)
    return {name: torch.from_numpy(array) for name, array in stored.items()}


@pytest.mark.parametrize("case", cases("resnet"), ids=str)
def test_every_stage_equals_the_original(case: Case) -> None:
    config, classes = described(case)
    network = NETWORK.ResNet(NETWORK.ResNetConfig(**config), classes).eval()
    load_into(network, golden_weights(case, network), "resnet")
    seen: dict[str, Tensor] = {}
    reference = case.arrays("outputs")
    for name in set(reference) - {"logits"}:
        module = network.get_submodule(STAGES.get(name, name))
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    (image,) = case.arrays("inputs").values()
    with torch.inference_mode():
        seen["logits"] = network(torch.from_numpy(image))
    for name, expected in reference.items():
        assert_close(seen[name].numpy().reshape(expected.shape), expected, f"{case} {name}")


@pytest.mark.parametrize("case", cases("resnet"), ids=str)
def test_the_tagger_reads_the_original_with_its_head(case: Case) -> None:
    """As torchvision's weights stand in a tagger's checkpoint, unused head and all."""
    config, classes = described(case)
    tagger = RECIPE.build({**CONFIG, "resnet": config})
    alone = NETWORK.ResNet(NETWORK.ResNetConfig(**config), classes)
    golden = golden_weights(case, alone)
    state = tagger.state_dict() | {f"resnet_model.{name}": x for name, x in golden.items()}
    state["resnet_model.fc.weight"] = torch.zeros(1000, golden["fc.weight"].shape[1])
    complete = RECIPE.complete_config(
        {name: value for name, value in CONFIG.items() if name != "resnet"}, state, Path()
    )
    assert config.items() <= complete["resnet"].items()
    load_into(tagger, RECIPE.adapt(state, complete), "resnet_gru")
    for name, tensor in tagger.eval().state_dict().items():
        if name.startswith("resnet_model."):
            assert torch.equal(tensor, golden[name.removeprefix("resnet_model.")])


def test_every_key_of_the_published_resnet18_is_loaded() -> None:
    published = key_shapes("resnet18")
    network = NETWORK.ResNet(NETWORK.ResNetConfig(), classes=1000)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(ours.items()) == list(published.items())
    state = {name: torch.rand(shape) for name, shape in published.items()}
    load_into(network, state, "resnet")
    loaded = network.state_dict()
    assert all(
        torch.equal(loaded[name], state[name])
        for name in published
        if not name.endswith("num_batches_tracked")
    )


# The plain formulas of the original tagger, over a checkpoint's tensors alone.


def plain_resnet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"resnet_model.{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"resnet_model.{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = F.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"resnet_model.layer{stage}.{block}.conv1.weight" in state:
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            if f"resnet_model.{at}.conv3.weight" in state:
                y = norm(conv(x, f"{at}.conv1"), f"{at}.bn1").relu()
                y = norm(conv(y, f"{at}.conv2", stride), f"{at}.bn2").relu()
                y = norm(conv(y, f"{at}.conv3"), f"{at}.bn3")
            else:
                y = norm(conv(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
                y = norm(conv(y, f"{at}.conv2"), f"{at}.bn2")
            if f"resnet_model.{at}.downsample.0.weight" in state:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + y).relu()
            block += 1
    return x.mean(dim=(2, 3))


def plain_gru(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Two bidirectional layers, step by step: (text, embedding) -> (text, 2 * hidden)."""

    def step(x: Tensor, h: Tensor, suffix: str) -> Tensor:
        gate_x = F.linear(x, state[f"gru.weight_ih_{suffix}"], state[f"gru.bias_ih_{suffix}"])
        gate_h = F.linear(h, state[f"gru.weight_hh_{suffix}"], state[f"gru.bias_hh_{suffix}"])
        (r_x, z_x, n_x), (r_h, z_h, n_h) = gate_x.chunk(3), gate_h.chunk(3)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        return (1 - z) * torch.tanh(n_x + r * n_h) + z * h

    for layer in (0, 1):
        sides = []
        for suffix, order in ((f"l{layer}", 1), (f"l{layer}_reverse", -1)):
            h, outputs = torch.zeros(CONFIG["hidden"]), []
            for row in list(x)[::order]:
                h = step(row, h, suffix)
                outputs.append(h)
            sides.append(torch.stack(outputs[::order]))
        x = torch.cat(sides, dim=1)
    return x


def plain_tagger(
    state: dict[str, Tensor], image: Tensor, ids: Tensor, length: Tensor | None
) -> Tensor:
    """One item at a time; ``length`` None is the original's ``gru_output[:, -1]``."""
    rows = []
    for index in range(len(image)):
        features = plain_resnet(state, image[index : index + 1])[0]
        vector = F.linear(features, state["resfc.weight"], state["resfc.bias"])
        row = ids[index] if length is None else ids[index, : length[index]]
        outputs = plain_gru(state, state["token_embedding.weight"][row])
        if length is None:
            text = outputs[-1]
        else:
            text = torch.cat([outputs[-1, : CONFIG["hidden"]], outputs[0, CONFIG["hidden"] :]])
        rows.append(F.linear(vector + text, state["fc.weight"], state["fc.bias"]))
    return torch.stack(rows)


def trained_like(config: dict[str, Any]) -> Any:
    """A network whose batch statistics are not the fresh ones."""
    torch.manual_seed(5)
    network = RECIPE.build(config)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return network.eval()


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("pooling", ["last_step", "final_states"])
def test_the_tagger_equals_the_plain_formulas(pooling: str, block: str) -> None:
    config = {**CONFIG, "pooling": pooling, "resnet": {**CONFIG["resnet"], "block": block}}
    network = trained_like(config)
    inputs = RECIPE.example("model", config, {"batch": 4, "text": 9}, seed=3)
    with torch.inference_mode():
        got = network(*inputs.values())
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        expected = plain_tagger(
            state, inputs["image"], inputs["text_ids"], inputs.get("text_length")
        )
    assert_close(got.numpy(), expected.numpy(), pooling)


@pytest.mark.parametrize("text", [1, 2, 15, 40])
def test_final_states_equal_packed_sequences(text: int) -> None:
    network = trained_like({**CONFIG, "pooling": "final_states"})
    length = torch.randint(1, text + 1, (32,), generator=torch.Generator().manual_seed(text))
    ids = torch.randint(0, 28, (32, text), generator=torch.Generator().manual_seed(text))
    with torch.inference_mode():
        embedded = network.token_embedding(ids)
        packed = pack_padded_sequence(embedded, length, batch_first=True, enforce_sorted=False)
        _, states = network.gru(packed)
        expected = torch.cat([states[-2], states[-1]], dim=1)
        got = network._final_states(embedded, length)
    # values are within 1, where neighbouring floats are 6e-8 apart
    torch.testing.assert_close(got, expected, rtol=0, atol=1.2e-7)


def test_final_states_do_not_depend_on_padding_and_last_step_does() -> None:
    short = torch.tensor([[2, 3, 4]])
    padded = F.pad(short, (0, 6))
    image, length = torch.rand(1, 3, 40, 32), torch.tensor([3])
    with torch.inference_mode():
        aware = trained_like({**CONFIG, "pooling": "final_states"})
        alone, beside_longer = aware(image, short, length), aware(image, padded, length)
        torch.testing.assert_close(alone, beside_longer, rtol=0, atol=1e-6)
        last = trained_like({**CONFIG, "pooling": "last_step"})
        assert not torch.allclose(last(image, short), last(image, padded), atol=1e-4)


def test_an_empty_title_counts_as_one_character_of_padding() -> None:
    network = trained_like({**CONFIG, "pooling": "final_states"})
    image, ids = torch.rand(1, 3, 40, 32), torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        empty = network(image, ids, torch.tensor([0]))
        assert torch.equal(empty, network(image, ids, torch.tensor([1])))
