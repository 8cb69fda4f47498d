"""The whole network against the plain formulas, one unpadded item and one key at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.golden_cases import assert_close
from support.published_keys import words
from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("visualbert_coattention", Path(__file__).parents[2] / "export")
HIDDEN, HEADS, LAYERS, EPS = 12, 3, 2, 1e-7
BERT = {
    "vocabulary": 19,
    "positions": 15,
    "token_types": 2,
    "hidden": HIDDEN,
    "layers": LAYERS,
    "heads": HEADS,
    "intermediate": 20,
    "first_cross_layer": LAYERS,
    "memory_hidden": HIDDEN,
    "layer_norm_eps": EPS,
}
CONFIG: dict[str, Any] = {
    "vocabulary": words(19),
    "max_length": 12,
    "encoder": BERT,
    "visual_dim": 7,
    "classes": 4,
    "labels": ["a", "b", "c", "d"],
    "answers": ["1", "2", "3", "4"],
}
VARIANTS = [
    {"variant": "full"},
    {"variant": "chunk", "chunk": 4},
    {"variant": "chunk", "chunk": 3, "text": True},
    {"variant": "sparse", "chunk": 3},
]
State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    scale, shift = state[f"{name}.LayerNorm.weight"], state[f"{name}.LayerNorm.bias"]
    return centred / torch.sqrt(variance + EPS) * scale + shift


def fewer(x: Tensor, keys: dict[str, Any], reduced: bool = True) -> Tensor:
    """Projected keys, or values, of one item: (tokens, hidden) -> (keys, hidden)."""
    if keys["variant"] == "full" or not reduced:
        return x
    chunks = [x[start : start + keys["chunk"]] for start in range(0, len(x), keys["chunk"])]
    tokens = [c.mean(dim=0) if keys["variant"] == "chunk" else c[0] for c in chunks]
    return torch.stack(tokens)


def attend(
    state: State, name: str, x: Tensor, sources: list[tuple[Tensor, bool]], keys: dict[str, Any]
) -> Tensor:
    """(queries, hidden) to the keys of all sources, chunked each alone if it says so."""
    query = linear(state, f"{name}.self.query", x)
    key, value = (
        torch.cat(
            [
                fewer(linear(state, f"{name}.self.{kind}", s), keys, reduced)
                for s, reduced in sources
            ]
        )
        for kind in ("key", "value")
    )
    size = HIDDEN // HEADS
    rows = []
    for q in query:
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([(q[part] * k[part]).sum() for k in key]) / math.sqrt(size)
            shares = torch.exp(scores) / torch.exp(scores).sum()
            heads.append(sum(share * v[part] for share, v in zip(shares, value, strict=True)))
        rows.append(torch.cat(heads))
    return norm(
        state, f"{name}.output", linear(state, f"{name}.output.dense", torch.stack(rows)) + x
    )


def plain(state: State, keys: dict[str, Any], task: str, ids: Tensor, visual: Tensor) -> Tensor:
    """ids (text,), visual (regions, dim), no padding -> logits (classes,)."""
    trunk = {name.removeprefix("visual_bert."): x for name, x in state.items()}
    at, whole_text = "embeddings", keys.get("text", False)
    text = trunk[f"{at}.word_embeddings.weight"][ids]
    text = text + trunk[f"{at}.position_embeddings.weight"][: len(ids)]
    text = norm(trunk, at, text + trunk[f"{at}.token_type_embeddings.weight"][0])
    regions = linear(trunk, f"{at}.visual_projection", visual)
    regions = regions + trunk[f"{at}.visual_position_embeddings.weight"][0]
    regions = norm(trunk, at, regions + trunk[f"{at}.visual_token_type_embeddings.weight"][1])
    text, regions = (
        attend(trunk, "coattention.text", text, [(regions, True)], keys),
        attend(trunk, "coattention.visual", regions, [(text, whole_text)], keys),
    )
    x = torch.cat([text, regions])
    for index in range(LAYERS):
        layer = f"encoder.layer.{index}"
        sources = [(x[: len(ids)], whole_text), (x[len(ids) :], True)]
        x = attend(trunk, f"{layer}.attention", x, sources, keys)
        inner = F.gelu(linear(trunk, f"{layer}.intermediate.dense", x))
        x = norm(trunk, f"{layer}.output", linear(trunk, f"{layer}.output.dense", inner) + x)
    if task == "answer":
        return linear(state, "cls", x[len(ids) - 2])
    return linear(state, "classifier", torch.tanh(linear(trunk, "pooler.dense", x[0])))


@pytest.mark.parametrize("keys", VARIANTS, ids=str)
@pytest.mark.parametrize("task", ["answer", "tag"])
def test_the_graph_equals_the_plain_formulas(task: str, keys: dict[str, Any]) -> None:
    config = {**CONFIG, "task": task, "keys": keys}
    torch.manual_seed(3)
    network = RECIPE.build(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    inputs = RECIPE.example("model", config, {"batch": 4, "text": 8, "regions": 11}, seed=2)
    inputs["text_mask"][:, :2] = 1  # [CLS] and [SEP]
    logits = run_eager(RECIPE.graphs(network, config)["model"], inputs)["logits"]
    state = network.state_dict()
    for item in range(4):
        ids = inputs["text_ids"][item][inputs["text_mask"][item] == 1]
        visual = inputs["visual"][item][inputs["visual_mask"][item] == 1]
        expected = plain(state, keys, task, ids, visual)
        assert_close(logits[item], expected.numpy(), f"{task} {keys} item {item}")
