"""VisualBERT's checkpoints in MMF's layout answer as MMF's own forward does.

The reference is put together here from transformers' model and mmf/models/visual_bert.py: visual
tokens of type 0, and a transform in front of the head's linear layer.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.exporter.weights import Weights, fit_names

RECIPE = load_recipe("visualbert", Path(__file__).parents[3] / "export")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "cat", "dog", "##s"]
FIELDS: dict[str, Any] = {"vocabulary": WORDS, "max_length": 12, "text_heads": 2}
HIDDEN, CLASSES = 16, 3
State = dict[str, torch.Tensor]


def trunk() -> nn.Module:
    from transformers import VisualBertConfig, VisualBertModel

    torch.manual_seed(3)
    config = VisualBertConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        visual_embedding_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=None,
    )
    return VisualBertModel(config).eval()


def mmf_name(name: str) -> str:
    """A name of transformers' trunk -> MMF's."""
    name = re.sub(r"visual_(token_type|position)_embeddings", r"\1_embeddings_visual", name)
    return "bert." + name.replace("visual_projection", "projection")


def head(transform: bool) -> nn.Module:
    torch.manual_seed(4)
    linear = nn.Linear(HIDDEN, CLASSES)
    if not transform:
        return linear
    dense, norm = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN, 1e-12)
    nn.init.normal_(norm.weight)
    return nn.Sequential(nn.ModuleDict({"dense": dense, "LayerNorm": norm}), linear)


def checkpoint(prefix: str, transform: bool) -> State:
    tensors = {mmf_name(name): tensor for name, tensor in trunk().state_dict().items()}
    tensors |= {f"classifier.{name}": x for name, x in head(transform).state_dict().items()}
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(5)
    ids = torch.randint(5, len(WORDS), (2, 6))
    text_mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    return ids, text_mask, torch.randn(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def mmf_answer(task: str, transform: bool) -> torch.Tensor:
    ids, text_mask, visual, visual_mask = inputs()
    states, pooled = trunk()(
        input_ids=ids,
        attention_mask=text_mask,
        visual_embeds=visual,
        visual_attention_mask=visual_mask,
        visual_token_type_ids=torch.zeros_like(visual_mask),
    )[:2]
    if task == "answer":
        pooled = states[torch.arange(2), text_mask.sum(1) - 2]
    classifier: Any = head(transform)
    if transform:
        first = classifier[0]
        pooled = first["LayerNorm"](nn.functional.gelu(first["dense"](pooled)))
        return classifier[1](pooled)  # type: ignore[no-any-return]
    return classifier(pooled)  # type: ignore[no-any-return]


CLASS_NAMES = {"answer": {"answers": ["x", "y", "z"]}, "tag": {"labels": ["x", "y", "z"]}}


@pytest.mark.parametrize(
    ("prefix", "transform"),
    [("model.", True), ("", True), ("bert.", False), ("net.model.", True)],
    ids=["mmf", "stripped", "uclanlp", "within"],
)
@pytest.mark.parametrize("task", CLASS_NAMES)
@torch.no_grad()
def test_it_answers_as_mmf_does(task: str, prefix: str, transform: bool) -> None:
    def load(state: State) -> tuple[dict[str, Any], nn.Module]:
        config = RECIPE.complete_config(FIELDS | CLASS_NAMES[task], state, Path())
        return config, load_network(RECIPE, state, config)

    off, (config, network) = fit_names(Weights(checkpoint(prefix, transform)), load)
    assert off == ("net." if prefix == "net.model." else "")
    assert (config["task"], config["head"]) == (task, "transform" if transform else "linear")
    graph = RECIPE.graphs(network, config)["model"].module
    torch.testing.assert_close(graph(*inputs()), mmf_answer(task, transform))


def test_the_task_must_be_said_where_names_do_not_show_it() -> None:
    for changes in ({}, {"task": "pretrain"}):
        with pytest.raises(ExportError, match="in MMF's layout must say the task: answer where"):
            RECIPE.complete_config(FIELDS | changes, checkpoint("model.", True), Path())
    config = RECIPE.complete_config(FIELDS | {"task": "tag"}, checkpoint("model.", True), Path())
    assert config["task"] == "tag"


def test_a_head_over_two_images_is_refused() -> None:
    """nlvr2's, which reads both pooled states at once."""
    state = checkpoint("model.", True)
    state["model.classifier.0.dense.weight"] = torch.zeros(2 * HIDDEN, 2 * HIDDEN)
    config = RECIPE.complete_config(FIELDS | CLASS_NAMES["tag"], state, Path())
    with pytest.raises(CheckpointMismatch, match=r"classifier\.0\.dense\.weight is \(32, 32\)"):
        load_network(RECIPE, state, config)
