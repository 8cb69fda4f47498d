"""The tagger against the plain formulas; its ResNet half also in test_resnet.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from support.golden_cases import Case, assert_close, cases
from support.resnet_cases import described, golden_weights
from vlserve.exporter.checkpoint import load_into
from vlserve.exporter.recipe import load_recipe
from vlserve.models.resnet import ResNet, ResNetConfig

RECIPE = load_recipe("resnet_gru", Path(__file__).parents[2] / "export")
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


@pytest.mark.parametrize("case", cases("resnet"), ids=str)
def test_the_tagger_reads_the_original_with_its_head(case: Case) -> None:
    """As torchvision's weights stand in a tagger's checkpoint, unused head and all."""
    config, classes = described(case)
    tagger = RECIPE.build({**CONFIG, "resnet": config})
    alone = ResNet(ResNetConfig.model_validate(config), classes)
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
        logits = network(*inputs.values())
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        expected = plain_tagger(
            state, inputs["image"], inputs["text_ids"], inputs.get("text_length")
        )
    assert_close(logits.numpy(), expected.numpy(), pooling)


@pytest.mark.parametrize("text", [1, 2, 15, 40])
def test_final_states_equal_packed_sequences(text: int) -> None:
    network = trained_like({**CONFIG, "pooling": "final_states"})
    length = torch.randint(1, text + 1, (32,), generator=torch.Generator().manual_seed(text))
    ids = torch.randint(0, 28, (32, text), generator=torch.Generator().manual_seed(text))
    with torch.inference_mode():
        embedded = network.token_embedding(ids)
        sequence = pack_padded_sequence(embedded, length, batch_first=True, enforce_sorted=False)
        _, states = network.gru(sequence)
        expected = torch.cat([states[-2], states[-1]], dim=1)
        final_states = network._final_states(embedded, length)
    # values are within 1, where neighbouring floats are 6e-8 apart
    torch.testing.assert_close(final_states, expected, rtol=0, atol=1.2e-7)


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
