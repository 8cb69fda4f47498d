"""BLIP: every task's graphs exported, its texts decoded, its checkpoints read."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny_exports import Exports, Tiny, graph_cases, tiny
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.models.vit import interpolate_positions
from vlserve.runtime.decoding import BeamSearch, CachedStep, Hypothesis, beam_search
from vlserve.runtime.text import load_tokenizer
from vlserve.runtime.types import Backend
from vlserve.testing.eager import EagerBackend

RECIPE = load_recipe("blip", Path(__file__).parents[3] / "export")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "cat", "dog", "##s"]
VISION = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "layer_norm_eps": 1e-6}
BERT = VISION | {
    "layers": 2,
    "layer_norm_eps": 1e-12,
    "vocabulary": len(WORDS) + 2,
    "positions": 24,
    "token_types": 0,
    "first_cross_layer": 0,
    "memory_hidden": 16,
}
FIELDS: dict[str, Any] = {
    "vocabulary": WORDS,
    "max_length": 12,
    "vision_heads": 2,
    "text_heads": 2,
}
CONFIG = FIELDS | {"image": {"height": 16, "width": 24}, "vision": VISION | {"patch": 8}}
TASKS: dict[str, dict[str, Any]] = {
    "match": {"encoder": BERT, "embedding": 6},
    "embed": {"encoder": BERT, "embedding": 6},
    "answer": {"encoder": BERT, "decoder": BERT, "answers": ["cat", "a dog", "dogs"]},
    "caption": {"decoder": BERT},
}
GRAPHS = {
    "match": ("image", "text", "fusion"),
    "answer": ("encoder", "score"),
    "caption": ("encoder", "step"),
}
"""Of embed and answer, what is another task's graph is not exported twice."""
State = dict[str, torch.Tensor]


def of_task(task: str, **options: Any) -> Tiny:
    return tiny(RECIPE, CONFIG | TASKS[task] | {"task": task} | options)


@pytest.fixture(scope="module")
def exports() -> Exports:
    models = {task: of_task(task) for task in TASKS}
    decoder: Any = models["caption"].network.text_decoder
    decoder.cls.predictions.bias[WORDS.index("[SEP]")] += 2  # so that some texts end early
    return Exports(models)


@graph_cases(GRAPHS)
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def test_the_graphs_of_every_task_are_exported(exports: Exports) -> None:
    shapes = {
        (task, name): (plan.inputs, plan.outputs, type(plan.module))
        for task, model in exports.models.items()
        for name, plan in model.plans.items()
    }
    coverage = {shapes[task, name] for task, names in GRAPHS.items() for name in names}
    assert set(shapes.values()) == coverage


def test_captions_are_the_same_over_exported_graphs(exports: Exports) -> None:
    model = exports.models["caption"]
    image = model.recipe.example("encoder", model.config, {"batch": 3}, seed=5)["image"].numpy()
    end_id = WORDS.index("[SEP]")
    rules = BeamSearch(beams=3, max_length=9, end_id=end_id, min_length=4)

    def write(encoder: Backend, step: Backend) -> list[list[Hypothesis]]:
        memory = encoder.run({"image": image})
        prompt = np.tile([[len(WORDS), WORDS.index("a")]], (3, 1))
        return beam_search(CachedStep(step, model.plans["step"].inputs, memory), prompt, rules)

    eager = write(*(EagerBackend(model.plans[graph]) for graph in ("encoder", "step")))
    graphs = (exports.graph("caption", name, "torchscript") for name in ("encoder", "step"))
    captions = write(*graphs)
    for hypothesis, other in zip(chain(*eager), chain(*captions), strict=True):
        np.testing.assert_array_equal(hypothesis.token_ids, other.token_ids)
        np.testing.assert_allclose(hypothesis.log_probs, other.log_probs, atol=1e-5)
    assert len({len(text.token_ids) for texts in eager for text in texts}) > 1


def to_transformers(state: State) -> State:
    names = {
        "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
        "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
        "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
        "visual_encoder.norm.": "vision_model.post_layernorm.",
        "visual_encoder.blocks.": "vision_model.encoder.layers.",
        ".attn.qkv.": ".self_attn.qkv.",
        ".attn.proj.": ".self_attn.projection.",
        ".norm1.": ".layer_norm1.",
        ".norm2.": ".layer_norm2.",
    }
    new_state = {}
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        new_state[name] = tensor
    return new_state


def with_what_is_ignored(state: State) -> State:
    extra = {f"visual_encoder_m.{name}": torch.rand(2) for name in ("norm.weight", "cls_token")}
    extra |= {"image_queue": torch.rand(6, 4), "ptr_queue": torch.zeros(1), "temp": torch.ones(())}
    position_ids = torch.arange(24)
    return state | extra | {"text_encoder.embeddings.position_ids": position_ids}


def with_second_names(state: State) -> State:
    head = "text_decoder.cls.predictions."
    words = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    bias = state[f"{head}bias"]
    return state | {f"{head}decoder.weight": words.clone(), f"{head}decoder.bias": bias.clone()}


LAYOUTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "original": ("match", lambda state: state),
    "transformers": ("match", to_transformers),
    "training": ("match", with_what_is_ignored),
    "vqa": ("answer", with_second_names),
    "caption": ("caption", with_second_names),
    "caption_in_transformers": ("caption", to_transformers),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_checkpoint_is_the_same_network(layout: str) -> None:
    task, change = LAYOUTS[layout]
    model = of_task(task, image={"height": 16, "width": 16}, answers=[])
    state = model.network.state_dict()
    checkpoint = change({name: tensor.clone() for name, tensor in state.items()})
    config = RECIPE.complete_config(FIELDS, checkpoint, Path())
    assert config["task"] == task
    network_state = load_network(RECIPE, checkpoint, config).state_dict()
    assert network_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(network_state[name], tensor), name


def test_another_image_size_interpolates_the_positions() -> None:
    state = of_task("caption", image={"height": 16, "width": 16}).network.state_dict()
    wider = FIELDS | {"image": {"height": 16, "width": 40}}
    config = RECIPE.complete_config(wider, state, Path())
    positions = load_network(RECIPE, state, config).state_dict()["visual_encoder.pos_embed"]
    assert positions.shape == (1, 1 + 2 * 5, 16)
    assert torch.equal(positions, interpolate_positions(state["visual_encoder.pos_embed"], 2, 5))


def broken(change: Callable[[State], object]) -> State:
    state = of_task("answer", image={"height": 16, "width": 16}).network.state_dict()
    copy = with_second_names({name: tensor.clone() for name, tensor in state.items()})
    change(copy)
    return copy


KEY = "text_encoder.encoder.layer.0.crossattention.self.key.weight"
REFUSALS: dict[str, tuple[State, dict[str, Any], str]] = {
    "another_family": (
        {"resnet_model.conv1.weight": torch.rand(2), "fc.weight": torch.rand(2)},
        {},
        r"not a blip checkpoint: missing visual_encoder\S+; unexpected resnet_model.conv1.weight",
    ),
    "a_part_missing": (
        broken(lambda state: state.pop("visual_encoder.cls_token")),
        {},
        "missing visual_encoder.cls_token",
    ),
    "a_part_too_many": (
        broken(lambda state: state.update({"region_head.weight": torch.rand(2)})),
        {},
        "unexpected region_head.weight",
    ),
    "albef": (
        broken(lambda state: [state.pop(name) for name in list(state) if "r.0.cross" in name]),
        {},
        f"missing {KEY}".replace(".", r"\."),
    ),
    "another_task": (broken(lambda state: None), {"task": "match"}, "missing vision_proj.weight"),
    "untied": (
        broken(lambda state: state["text_decoder.cls.predictions.decoder.weight"].add_(1)),
        {},
        "decoder.weight must be text_decoder.bert.embeddings.word_embeddings.weight",
    ),
    "other_sizes": (
        broken(lambda state: None),
        {"embedding": 6, "vision": {"patch": 5}},
        r"vision: config.json says \{'patch': 5\}, the checkpoint has \{'patch': 8\}",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_blip_checkpoint_is_refused_with_the_reason(case: str) -> None:
    state, changes, reason = REFUSALS[case]
    with pytest.raises(CheckpointMismatch, match=reason):
        load_network(RECIPE, state, RECIPE.complete_config(FIELDS | changes, state, Path()))


def test_a_config_that_cannot_work_says_why(tmp_path: Path) -> None:
    state = of_task("answer", image={"height": 16, "width": 16}).network.state_dict()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n", encoding="utf-8")
    for changes, reason in (
        ({"max_length": 99}, "max_length is over the 24 positions"),
        ({"image": {"height": 20}}, "multiples of the patch, 8"),
        ({"task": "tag"}, "task tag: blip has match, embed, answer, caption"),
        ({"vocabulary": "missing.txt"}, "vocabulary missing.txt cannot be read"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ):
        with pytest.raises(ExportError, match=reason):
            RECIPE.complete_config(FIELDS | changes, state, tmp_path)
    short = RECIPE.complete_config(FIELDS | {"vocabulary": "vocab.txt"}, state, tmp_path)
    with pytest.raises(ExportError, match="the vocabulary has 12 tokens, the checkpoint 13"):
        RECIPE.serve(short, tmp_path)
    for vocabulary in (["a", "b"], [*WORDS, "a"]):
        with pytest.raises(ExportError, match="repeats a token, or lacks one of"):
            RECIPE.serve(short | {"vocabulary": vocabulary}, tmp_path)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["token_types", "first_cross_layer"])
def test_a_new_network_that_blip_cannot_be_names_the_field(part: str, name: str) -> None:
    config = CONFIG | TASKS["answer"] | {"task": "answer", part: BERT | {name: 1}}
    with pytest.raises(ExportError, match=f"{part}.{name} must be 0"):
        RECIPE.build(config)


def test_what_a_task_is_told(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    ranker = RECIPE.serve(of_task("answer").config, tmp_path / "assets")
    assert ranker.labels == ("cat", "a dog", "dogs") and ranker.text is not None
    start, end = len(WORDS), WORDS.index("[SEP]")
    answers = json.loads((tmp_path / ranker.options["answer_ids"]).read_text(encoding="utf-8"))
    assert answers == [[start, 8, end, 0], [start, 5, 9, end], [start, 9, 10, end]]
    tokenizer = load_tokenizer(ranker.text, tmp_path)
    assert tokenizer.ids("A dog, cats").tolist() == [2, 5, 9, 1, 8, 10, 3]

    writer = RECIPE.serve(of_task("answer", answers=[]).config, tmp_path / "assets")
    assert writer.options["prompt_ids"] == [start] and writer.options["end_id"] == end
    captioner = RECIPE.serve(of_task("caption").config, tmp_path / "assets")
    assert captioner.text is None and (tmp_path / captioner.options["tokenizer"]).is_file()
    assert captioner.options["prompt_ids"] == [start, 5, 6, 7]
    assert (captioner.options["beams"], captioner.options["max_length"]) == (3, 20)
