"""ViLBERT: every task's graphs exported, its checkpoints read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny_exports import Exports, Tiny, graph_cases, tiny
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.text import load_tokenizer
from vlserve.runtime.types import Arrays
from vlserve.testing.eager import EagerBackend

RECIPE = load_recipe("vilbert", Path(__file__).parents[3] / "export")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "cat", "dog", "##s"]
STREAM = {"heads": 2, "layer_norm_eps": 1e-12}
ENCODER: dict[str, Any] = {
    "text": STREAM | {"hidden": 16, "layers": 3, "intermediate": 24},
    "visual": STREAM | {"hidden": 12, "layers": 3, "intermediate": 20},
    "joint_hidden": 8,
    "joint_heads": 2,
    "text_connections": [1, 2],
    "visual_connections": [0, 2],
    "gated": False,
}
ONE_CONNECTION = ENCODER | {
    "text": ENCODER["text"] | {"layers": 1},
    "visual": ENCODER["visual"] | {"layers": 1},
    "text_connections": [1],
    "visual_connections": [0],
}
GATED = {"encoder": ENCODER | {"gated": True}, "task_tokens": 20}
FIELDS: dict[str, Any] = {"vocabulary": WORDS, "max_length": 12}
CONFIG = FIELDS | {
    "task_token": 13,
    "encoder": ENCODER,
    "positions": 24,
    "token_types": 2,
    "region_dim": 9,
    "region_targets": 7,
}
HEADS = {
    "vil_prediction": 3,
    "vil_prediction_gqa": 2,
    "vil_binary_prediction": 2,
    "vil_logit": 1,
    "vil_tri_prediction": 3,
    "vision_logit": 1,
    "linguisic_logit": 1,
}
BETA = {name: HEADS[name] for name in ("vil_prediction", "vil_logit", "vision_logit")}
BETA_HEADS = {"heads": BETA | {"linguisic_logit": 1}, "scaled_classifier": True}
ANSWERS = {"answers": ["cat", "a red ball", "dogs"]}
TASKS: dict[str, dict[str, Any]] = {
    "answer": GATED | {"heads": HEADS} | ANSWERS,
    "answer_of_beta": {"task": "answer"} | BETA_HEADS | ANSWERS,
    "match": GATED | {"heads": HEADS},
    "match_of_pretraining": {"task": "match"},
    "ground": GATED | {"heads": HEADS},
    "ground_of_beta": {"task": "ground"} | BETA_HEADS,
    "reason": GATED | {"heads": HEADS},
    "entail": {"heads": HEADS, "fusion": "sum"},
}
GRAPHS = {
    "answer": ("model",),
    "answer_of_beta": ("model",),
    "match": ("text", "fusion"),
    "match_of_pretraining": ("text", "fusion"),
    "ground": ("model",),
    "ground_of_beta": ("model",),
    "reason": ("model",),
    "entail": ("model",),
}
FEW = ("answer_of_beta", "ground_of_beta", "entail")
"""Exported with one connection, as ONNX too, which takes longer the more layers there are."""
State = dict[str, torch.Tensor]


def of_task(name: str, **options: Any) -> Tiny:
    return tiny(RECIPE, CONFIG | {"task": name} | TASKS[name] | options)


@pytest.fixture(scope="module")
def exports() -> Exports:
    sizes = {name: {"encoder": ONE_CONNECTION} if name in FEW else {} for name in TASKS}
    return Exports({name: of_task(name, **sizes[name]) for name in TASKS})


@graph_cases(GRAPHS, onnx_of=(*FEW, "match_of_pretraining"))
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def test_the_graphs_of_every_task_are_exported(exports: Exports) -> None:
    assert {model.config["task"] for model in exports.models.values()} == set(RECIPE.spec.tasks)
    assert {task: set(model.plans) for task, model in exports.models.items()} == {
        task: set(names) for task, names in GRAPHS.items()
    }


def example(model: Tiny, graph: str, seed: int, **sizes: int) -> Arrays:
    inputs = model.recipe.example(graph, model.config, sizes, seed)
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.parametrize("task", [task for task in TASKS if not task.startswith("match")])
def test_an_answer_does_not_depend_on_padding_or_neighbours(task: str) -> None:
    model = of_task(task)
    inputs = example(model, "model", seed=3, batch=4, text=9, regions=6)
    output = model.plans["model"].outputs[0].name
    together = EagerBackend(model.plans["model"]).run(inputs)[output]
    assert together.std(axis=0).max() > 1e-3
    for item in range(4):
        tokens, regions = inputs["text_mask"][item].sum(), inputs["visual_mask"][item].sum(-1).max()
        alone = {name: x[item : item + 1] for name, x in inputs.items()}
        alone |= {name: alone[name][:, :tokens] for name in ("text_ids", "text_mask")}
        alone["visual_mask"] = alone["visual_mask"][..., :regions]
        alone |= {name: alone[name][..., :regions, :] for name in ("visual", "boxes")}
        values = EagerBackend(model.plans["model"]).run(alone)[output][0]
        np.testing.assert_allclose(values, together[item, : len(values)], rtol=1e-4, atol=1e-5)
        if output == "region_scores":
            assert (together[item, regions:] < values.min() - 1000).all()


@pytest.mark.parametrize("task", ["match", "match_of_pretraining"])
def test_a_text_is_read_once_for_all_images(task: str, exports: Exports) -> None:
    model = exports.models[task]
    graphs = {name: exports.graph(task, name, "torchscript") for name in GRAPHS[task]}
    text = example(model, "text", seed=1, batch=1, text=6)
    images = example(model, "fusion", seed=2, batch=5, text=6, regions=4)
    visual = {name: images[name] for name in ("visual", "visual_mask", "boxes")}

    def match(texts: Arrays) -> Any:
        states = graphs["text"].run(texts)["text_states"]
        texts = {"text_mask": texts["text_mask"], "text_states": states}
        copies = {name: np.repeat(x, 5 // len(x), axis=0) for name, x in texts.items()}
        return graphs["fusion"].run(copies | visual)["match_logits"]

    logits = match(text)
    assert logits.shape == (5, 1) and np.ptp(logits) > 1e-3
    five = {name: np.repeat(x, 5, axis=0) for name, x in text.items()}
    np.testing.assert_allclose(logits, match(five), atol=1e-6)


def test_both_images_count_for_reasoning() -> None:
    model = of_task("reason")
    inputs = example(model, "model", seed=4, batch=2, text=5, regions=3)
    backend = EagerBackend(model.plans["model"])
    logits = backend.run(inputs)["logits"]
    for image in (0, 1):
        variant = {**inputs, "visual": inputs["visual"].copy()}
        variant["visual"][0, image, 0] += 1
        other_logits = backend.run(variant)["logits"]
        assert np.abs(other_logits - logits)[0].max() > 1e-4
        np.testing.assert_array_equal(other_logits[1], logits[1])


PUBLISHED_CONFIG = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "v_feature_size": 9,
    "v_target_size": 1601,
    "v_hidden_size": 12,
    "v_num_hidden_layers": 3,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 20,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_attention_probs_dropout_prob": 0.1,
    "v_initializer_range": 0.02,
    "bi_hidden_size": 8,
    "bi_num_attention_heads": 2,
    "bi_intermediate_size": 1024,
    "bi_attention_type": 1,
    "v_biattention_id": [0, 2],
    "t_biattention_id": [1, 2],
    "pooling_method": "mul",
}
"""bert_base_6layer_6conect.json, of another size."""


def with_what_is_never_used(state: State) -> State:
    prefix = "bert.encoder.c_layer.1.biOutput.q_dense"
    return state | {f"{prefix}{number}.weight": torch.rand(2) for number in (1, 2)}


def with_old_names(state: State) -> State:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for name, x in state.items()
    }


LAYOUTS: dict[str, tuple[str, str, Callable[[State], State]]] = {
    "12_in_1": ("answer", "answer", with_what_is_never_used),
    "beta": ("answer_of_beta", "answer", with_what_is_never_used),
    "pretraining": ("match_of_pretraining", "match", with_old_names),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_checkpoint_is_the_same_network(layout: str, tmp_path: Path) -> None:
    task, expected, change = LAYOUTS[layout]
    state = of_task(task).network.state_dict()
    content = {f"module.{name}": tensor.clone() for name, tensor in change(dict(state)).items()}
    torch.save(
        {"model_state_dict": content, "global_step": 7}, tmp_path / "pytorch_ckpt_latest.tar"
    )
    checkpoint = read_checkpoint(tmp_path / "pytorch_ckpt_latest.tar")
    config = RECIPE.complete_config(PUBLISHED_CONFIG | {"vocabulary": WORDS}, checkpoint, tmp_path)
    assert config["task"] == expected
    assert config["encoder"] == of_task(task).config["encoder"]
    network_state = load_network(RECIPE, checkpoint, config).state_dict()
    assert network_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(network_state[name], tensor), name


def test_without_a_config_heads_and_places_are_as_published(tmp_path: Path) -> None:
    state = of_task("match").network.state_dict()
    config = RECIPE.complete_config({"vocabulary": WORDS}, state, tmp_path)
    assert config["encoder"]["text_connections"] == [1, 2]
    assert config["encoder"]["visual_connections"] == [1, 2]
    assert config["encoder"]["text"]["heads"] == 1
    assert (config["task_token"], config["max_length"]) == (1, 23)


TYPES = "bert.embeddings.token_type_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop(TYPES), f"missing {TYPES}"),
        (lambda state: state.pop("vil_logit.bias"), "missing vil_logit.bias"),
        (
            lambda state: state.update({"clf.weight": torch.rand(2)}),
            "unexpected clf.weight",
        ),
        (
            lambda state: [
                state.clear(),
                state.update({"visual_encoder.norm.bias": torch.rand(2)}),
            ],
            f"missing {QUERY}; unexpected visual_encoder.norm.bias",
        ),
    ],
    ids=["token_types", "half_a_head", "another_head", "another_family"],
)
def test_what_is_no_vilbert_checkpoint_is_refused_with_the_reason(
    change: Callable[[State], object], reason: str
) -> None:
    state = dict(of_task("match").network.state_dict())
    change(state)
    with pytest.raises(CheckpointMismatch, match=f"not a vilbert checkpoint: {reason}"):
        load_network(RECIPE, state, RECIPE.complete_config(FIELDS, state, Path()))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "caption"}, "task caption: vilbert has answer, match, ground"),
        ({"hidden_size": 768}, "hidden_size: config.json says 768, the checkpoint has 16"),
        ({"dynamic_attention": False}, "dynamic_attention: config.json says False"),
        ({"hidden_act": "relu"}, "hidden_act is relu; only gelu is read"),
        ({"model": "roberta"}, "model is roberta; only bert is read"),
        ({"with_coattention": False}, "with_coattention is False"),
        ({"v_biattention_id": [0, 9]}, "connections must ascend from 0 to 3"),
        ({"t_biattention_id": [1]}, "both streams have the same connections"),
        ({"bi_num_attention_heads": 3}, "8 is no multiple of heads 3"),
        ({"task_token": 20}, "task_token must be below 20"),
        ({"max_length": 25}, "max_length is over the 24 positions"),
        ({"vocabulary": WORDS[:-1]}, "the vocabulary has 10 tokens, the checkpoint 11"),
        ({"number_of_heads": 3}, "number_of_heads: Extra inputs are not permitted"),
    ],
)
def test_a_config_that_cannot_work_says_why(changes: dict[str, Any], reason: str) -> None:
    state = of_task("match").network.state_dict()
    with pytest.raises((ExportError, CheckpointMismatch), match=reason):
        RECIPE.complete_config(FIELDS | changes, state, Path())


def test_a_head_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    model = of_task("answer_of_beta", task="reason")
    with pytest.raises(ExportError, match=r"task reason: .* no head vil_binary_prediction"):
        RECIPE.serve(model.config, tmp_path)
    with pytest.raises(ExportError, match=r"task reason: .* no head vil_binary_prediction"):
        RECIPE.graphs(model.network, model.config)


def test_answers_are_as_many_as_the_heads(tmp_path: Path) -> None:
    state = of_task("answer").network.state_dict()
    (tmp_path / "answers.json").write_text(json.dumps(["cat", "dog"]), encoding="utf-8")
    config_file = FIELDS | PUBLISHED_CONFIG | {"answers": "answers.json"}
    config = RECIPE.complete_config(config_file, state, tmp_path)
    with pytest.raises(ExportError, match="names 2 answers, the checkpoint has 3"):
        RECIPE.serve(config, tmp_path)
    with pytest.raises(ExportError, match=r"answers none.json cannot be read"):
        RECIPE.complete_config(config_file | {"answers": "none.json"}, state, tmp_path)


def test_what_a_task_is_told(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    interfaces = {task: RECIPE.serve(of_task(task).config, tmp_path / "assets") for task in TASKS}
    assert interfaces["reason"].labels == ("false", "true")
    assert interfaces["entail"].labels == ("contradiction", "neutral", "entailment")
    assert interfaces["answer"].labels == ("cat", "a red ball", "dogs")
    multi_label = {task for task, interface in interfaces.items() if interface.multi_label}
    assert multi_label == {"answer", "answer_of_beta"}
    for task, interface in interfaces.items():
        options = {"retrieval_score": "match_logit"} if task.startswith("match") else {}
        assert interface.options == {"global_region": True} | options
        regions = interface.regions
        assert regions is not None and regions.boxes and regions.dim == 9


def test_the_task_token_stands_second_and_takes_no_room(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for task, ids, cut in (
        ("entail", [2, 6, 7, 10, 1, 3], [2, 6, 6, 6, 3]),
        ("match", [2, 11 + 13, 6, 7, 10, 1, 3], [2, 11 + 13, 6, 6, 6, 3]),
    ):
        interface = RECIPE.serve(of_task(task, max_length=12).config, tmp_path / "assets")
        assert interface.text is not None
        assert load_tokenizer(interface.text, tmp_path).ids("Red balls!").tolist() == ids
        interface = RECIPE.serve(of_task(task, max_length=5).config, tmp_path / "assets")
        assert interface.text is not None
        assert load_tokenizer(interface.text, tmp_path).ids("red " * 9).tolist() == cut
