"""VisualBERT with and without co-attention: every task's graphs exported, checkpoints read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support.tiny_exports import Exports, Tiny, graph_cases, tiny
from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.convert import Format, load_network
from vlserve.exporter.recipe import Recipe, load_recipe
from vlserve.models.resnet import ResNet, ResNetConfig
from vlserve.runtime.text import load_tokenizer

EXPORT = Path(__file__).parents[3] / "export"
RECIPES = {name: load_recipe(name, EXPORT) for name in ("visualbert", "visualbert_coattention")}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "cat", "dog", "##s"]
ENCODER = {
    "vocabulary": len(WORDS),
    "positions": 24,
    "token_types": 2,
    "hidden": 16,
    "layers": 2,
    "heads": 2,
    "intermediate": 24,
    "first_cross_layer": 2,
    "memory_hidden": 16,
    "layer_norm_eps": 1e-12,
}
ONE_LAYER = ENCODER | {"layers": 1, "first_cross_layer": 1}
RESNET = ResNetConfig(layers=(1, 1), width=4)
GRID = {"checkpoint": "resnet.safetensors", "image": {"height": 24, "width": 32}}
FIELDS: dict[str, Any] = {"vocabulary": WORDS, "max_length": 12, "text_heads": 2}
CONFIG = FIELDS | {"encoder": ENCODER, "visual_dim": 8}
TASKS: dict[str, dict[str, Any]] = {
    "answer": {"answers": ["cat", "red", "two"], "classes": 3},
    "tag": {"labels": ["a", "b", "c", "d"], "classes": 4, "multi_label": True},
}
KEYS: dict[str, dict[str, Any]] = {
    "full": {"variant": "full"},
    "chunk": {"variant": "chunk", "chunk": 3, "text": True},
    "sparse": {"variant": "sparse", "chunk": 4},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "visualbert-answer": ("visualbert", {"task": "answer"}),
    "visualbert-tag": ("visualbert", {"task": "tag"}),
    "visualbert-transform": ("visualbert", {"task": "tag", "head": "transform"}),
    **{
        f"coattention-{keys}-{task}": (
            "visualbert_coattention",
            {"task": task, "keys": KEYS[keys], "encoder": encoder},
        )
        for keys, task, encoder in (
            ("full", "tag", ONE_LAYER),
            ("chunk", "answer", ENCODER),
            ("chunk", "tag", ENCODER),
            ("sparse", "tag", ONE_LAYER),
        )
    },
}
State = dict[str, torch.Tensor]


def model(family: str, task: str, **options: Any) -> Tiny:
    return tiny(RECIPES[family], CONFIG | {"task": task} | TASKS[task] | options)


@pytest.fixture(scope="module")
def exports() -> Exports:
    models = {name: model(family, **options) for name, (family, options) in MODELS.items()}
    return Exports(models)


@graph_cases(
    dict.fromkeys(MODELS, ("model",)), onnx_of=("coattention-full-tag", "coattention-sparse-tag")
)
def test_a_graph_answers_like_the_network(
    task: str, graph: str, format: Format, exports: Exports
) -> None:
    exports.models[task].assert_equal(graph, exports.graph(task, graph, format))


def test_every_task_of_both_families_is_exported() -> None:
    pairs = {(family, options["task"]) for family, options in MODELS.values()}
    assert pairs == {(name, task) for name, recipe in RECIPES.items() for task in recipe.spec.tasks}


@pytest.mark.parametrize("family", RECIPES)
@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_is_told(task: str, family: str, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    config = model(family, task, max_regions=50).config
    interface = RECIPES[family].serve(config, tmp_path / "assets")
    assert interface.task == task and interface.image is None and interface.text is not None
    assert interface.labels == tuple(TASKS[task].get("labels", TASKS[task].get("answers")))
    assert interface.multi_label == (task == "tag")
    regions = interface.regions
    assert regions is not None
    assert (regions.dim, regions.max_regions, regions.boxes) == (8, 50, False)
    ids = load_tokenizer(interface.text, tmp_path).ids("Red balls!")
    assert ids.tolist() == [2, 6, 7, 10, 1, 3]


def with_a_resnet(folder: Path) -> State:
    torch.manual_seed(7)
    state = ResNet(RESNET, classes=5).state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    save_file(state, folder / GRID["checkpoint"])
    return state


@pytest.mark.export
@pytest.mark.parametrize("family", RECIPES)
def test_a_grid_is_merged_and_makes_the_features(family: str, tmp_path: Path) -> None:
    resnet, recipe = with_a_resnet(tmp_path), RECIPES[family]
    state = dict(model(family, "answer").network.state_dict())
    config = recipe.complete_config(FIELDS | {"grid": GRID, **TASKS["answer"]}, state, tmp_path)
    assert config["grid"]["checkpoint"] == str(tmp_path / GRID["checkpoint"])
    network = load_network(recipe, state, config)
    assert all(
        torch.equal(tensor, resnet[name.removeprefix("grid.")])
        for name, tensor in network.state_dict().items()
        if name.startswith("grid.")
    )
    grid = Tiny(recipe, config, network)
    assert set(grid.plans) == {"model", "features"}
    (visual,) = grid.plans["features"].outputs
    assert visual.dims == ("batch", 3 * 4, 8)
    for format in ("onnx", "torchscript"):
        grid.assert_equal("features", grid.export("features", format))  # type: ignore[arg-type]
    assert not any("grid" in name for name in grid.plans["model"].module.state_dict())
    (tmp_path / "assets").mkdir()
    interface = recipe.serve(config, tmp_path / "assets")
    image = interface.image
    assert image is not None and (image.height, image.width) == (24, 32)


def test_a_grid_of_another_width_is_refused(tmp_path: Path) -> None:
    with_a_resnet(tmp_path)
    state = model("visualbert", "answer", visual_dim=9).network.state_dict()
    with pytest.raises(ExportError, match="grid's features are 8 wide, the network reads 9"):
        RECIPES["visualbert"].complete_config(FIELDS | {"grid": GRID}, state, tmp_path)


def transformers_config(**options: Any) -> dict[str, Any]:
    return {
        "model_type": "visual_bert",
        "architectures": ["VisualBertForQuestionAnswering"],
        "vocab_size": len(WORDS),
        "max_position_embeddings": 24,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "layer_norm_eps": 1e-6,
        "visual_embedding_dim": 8,
        "id2label": {"1": "red", "0": "cat", "2": "two"},
        **options,
    }


@pytest.mark.parametrize("family", RECIPES)
def test_transformers_config_is_read_as_it_is(family: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    state = dict(model(family, "answer").network.state_dict())
    state["visual_bert.embeddings.position_ids"] = torch.arange(24).unsqueeze(0)
    config = RECIPES[family].complete_config(transformers_config(), state, tmp_path)
    assert config["task"] == "answer" and config["answers"] == ["cat", "red", "two"]
    assert config["encoder"] == ENCODER | {"heads": 4, "layer_norm_eps": 1e-6}
    assert config["vocabulary"] == WORDS and config["max_length"] == 24
    network_state = load_network(RECIPES[family], state, config).state_dict()
    assert network_state.keys() == state.keys() - {"visual_bert.embeddings.position_ids"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in network_state.items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (transformers_config(num_hidden_layers=3), "encoder: config.json says .*'layers': 3"),
        (transformers_config(visual_embedding_dim=4), "visual_dim: config.json says 4"),
        (transformers_config(id2label={"0": "a"}), "answers: config.json names 1, .* has 3"),
        ({"task": "tag", "labels": ["a"]}, "task: config.json says tag, the checkpoint has answer"),
    ],
    ids=["layers", "width", "answers", "task"],
)
def test_a_config_that_says_otherwise_than_the_tensors_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    state = model("visualbert", "answer").network.state_dict()
    with pytest.raises(CheckpointMismatch, match=reason):
        RECIPES["visualbert"].complete_config(FIELDS | changes, state, Path())


def test_a_network_that_is_not_read_says_why() -> None:
    state = model("visualbert", "answer").network.state_dict()
    for changes, reason in (
        ({"bypass_transformer": True}, "bypass_transformer is True; only False is read"),
        ({"hidden_act": "relu"}, "hidden_act is relu; only gelu is read"),
    ):
        with pytest.raises(ExportError, match=reason):
            RECIPES["visualbert"].complete_config(transformers_config(**changes), state, Path())


WORD = "visual_bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("family", RECIPES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop(WORD), f"missing {WORD}"),
        (
            lambda state: state.pop("visual_bert.pooler.dense.bias"),
            "missing visual_bert.pooler.dense.bias",
        ),
        (
            lambda state: state.update({"box_head.weight": torch.rand(2)}),
            "unexpected box_head.weight",
        ),
        (lambda state: state.clear(), "missing cls.weight"),
    ],
    ids=["words", "pooler", "another_head", "empty"],
)
def test_what_is_no_checkpoint_of_the_family_is_refused_with_the_reason(
    change: Callable[[State], object], reason: str, family: str
) -> None:
    recipe, state = RECIPES[family], dict(model(family, "answer").network.state_dict())
    change(state)
    with pytest.raises(CheckpointMismatch, match=f"not a {family} checkpoint: {reason}"):
        load_network(recipe, state, recipe.complete_config(FIELDS, state, Path()))


def test_a_task_that_there_is_not_is_no_missing_tensor() -> None:
    recipe = RECIPES["visualbert"]
    with pytest.raises(CheckpointMismatch, match=r"missing cls\.weight"):
        recipe.complete_config(FIELDS | {"task": "dance"}, {}, Path())


def test_each_family_refuses_the_others_checkpoint() -> None:
    for family, other in (RECIPES, tuple(reversed(RECIPES))):
        state = model(other, "answer").network.state_dict()
        recipe: Recipe = RECIPES[family]
        with pytest.raises(CheckpointMismatch, match=r"visual_bert\.coattention"):
            load_network(recipe, state, recipe.complete_config(FIELDS, state, Path()))


def pretrained(**change: torch.Tensor | None) -> State:
    config = CONFIG | {"task": "pretrain", "classes": 2}
    state = dict(tiny(RECIPES["visualbert"], config).network.state_dict())
    return {name: x for name, x in (state | change).items() if x is not None}


DECODER = "cls.predictions.decoder.weight"


@pytest.mark.parametrize("change", [{}, {DECODER: None}], ids=["both", "one"])
def test_a_pretraining_checkpoint_is_read_with_its_heads(
    change: dict[str, None], tmp_path: Path
) -> None:
    recipe, state = RECIPES["visualbert"], pretrained(**change)
    config = recipe.complete_config(FIELDS, state, Path())
    assert config["task"] == "pretrain"
    network_state = load_network(recipe, state, config).state_dict()
    assert all(torch.equal(network_state[name], tensor) for name, tensor in state.items())
    assert torch.equal(network_state[DECODER], state[WORD])
    with pytest.raises(ExportError, match="pretrain has no head that answers requests"):
        recipe.serve(config, tmp_path)


def test_shared_parameters_that_differ_are_refused() -> None:
    recipe, state = RECIPES["visualbert"], pretrained(**{DECODER: torch.rand(len(WORDS), 16)})
    with pytest.raises(CheckpointMismatch, match=f"{DECODER} must be {WORD}, but differs"):
        load_network(recipe, state, recipe.complete_config(FIELDS, state, Path()))


def test_names_of_the_classes_are_needed_and_may_lie_in_a_file(tmp_path: Path) -> None:
    recipe, state = RECIPES["visualbert"], model("visualbert", "answer").network.state_dict()
    with pytest.raises(ExportError, match="names no answers"):
        recipe.serve(recipe.complete_config(FIELDS, state, tmp_path), tmp_path)
    (tmp_path / "answers.json").write_text(json.dumps(["x", "y", "z"]), encoding="utf-8")
    config = recipe.complete_config(FIELDS | {"answers": "answers.json"}, state, tmp_path)
    assert config["answers"] == ["x", "y", "z"]
    with pytest.raises(ExportError, match=r"answers none\.json cannot be read"):
        recipe.complete_config(FIELDS | {"answers": "none.json"}, state, tmp_path)
