"""Every shape in which a tagger's checkpoint is found, and what is said of one that is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.checkpoint import read_checkpoint
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("resnet_gru", Path(__file__).parents[3] / "export")
State = dict[str, torch.Tensor]
SIZES = {"hidden": 8, "embedding_size": 6, "resnet": {"layers": [1, 1, 2, 1], "width": 8}}
FIELDS: dict[str, Any] = {
    "labels": ["cat", "dog", "car"],
    "vocabulary": {"a": 1, "猫": 9},
    "max_length": 15,
    "image": {"height": 32, "width": 24},
}


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return {name: x.clone() for name, x in RECIPE.build(FIELDS | SIZES).state_dict().items()}


def head(state: State, weight: torch.Tensor, bias: torch.Tensor) -> State:
    return state | {"resnet_model.fc.weight": weight, "resnet_model.fc.bias": bias}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "parallel": lambda state: {f"module.{name}": x for name, x in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"state": {}}},
    "model": lambda state: {"model": {f"module.{name}": x for name, x in state.items()}},
    "thousand_way_head": lambda state: head(state, torch.rand(1000, 64), torch.rand(1000)),
    "head_is_resfc": lambda state: head(state, state["resfc.weight"], state["resfc.bias"]),
    "no_batch_counts": lambda state: {
        name: x for name, x in state.items() if not name.endswith("num_batches_tracked")
    },
    "half": lambda state: {name: x.half() for name, x in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_kind_of_checkpoint_is_the_same_network(
    layout: str, state: State, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    torch.save(LAYOUTS[layout](state), file)
    checkpoint = read_checkpoint(file)
    config = RECIPE.complete_config(FIELDS, checkpoint, tmp_path)
    network_state = load_network(RECIPE, checkpoint, config).state_dict()
    assert network_state.keys() == state.keys()
    for name, tensor in network_state.items():
        exact = state[name].half().float() if layout == "half" else state[name]
        torch.testing.assert_close(tensor, exact.to(tensor.dtype), rtol=0, atol=0)


def test_sizes_are_read_from_the_tensors(state: State, tmp_path: Path) -> None:
    config = RECIPE.complete_config(FIELDS, state, tmp_path)
    assert (config["hidden"], config["embedding_size"]) == (8, 6)
    resnet: dict[str, Any] = {"layers": [1, 1, 2, 1], "width": 8, "block": "BasicBlock"}
    assert resnet.items() <= config["resnet"].items()
    assert (config["gru_layers"], config["vocabulary_size"]) == (2, 10)
    assert (config["pooling"], config["pad_id"], config["unknown_id"]) == ("last_step", 0, 0)


def test_a_bottleneck_is_recognised(tmp_path: Path) -> None:
    resnet = {"block": "Bottleneck", "layers": [1, 2, 1, 1], "width": 4}
    state = RECIPE.build(FIELDS | SIZES | {"resnet": resnet}).state_dict()
    assert resnet.items() <= RECIPE.complete_config(FIELDS, state, tmp_path)["resnet"].items()


def test_the_vocabulary_may_be_a_file(state: State, tmp_path: Path) -> None:
    (tmp_path / "chars.json").write_text(json.dumps({"猫": 4}), encoding="utf-8")
    config = RECIPE.complete_config(FIELDS | {"vocabulary": "chars.json"}, state, tmp_path)
    assert config["vocabulary"] == {"猫": 4}
    with pytest.raises(ExportError, match=r"missing\.json"):
        RECIPE.complete_config(FIELDS | {"vocabulary": "missing.json"}, state, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["cat", "dog"]}, "labels: config.json names 2, the checkpoint has 3"),
        ({"hidden": 128}, "hidden: config.json says 128, the checkpoint has 8"),
        ({"resnet": {"width": 64}}, "resnet: config.json says {'width': 64}"),
        ({"vocabulary": {"a": 10}}, "ids go up to 10, but the embedding has 10 rows"),
        ({"unknown_id": 12}, "ids go up to 12"),
        ({"labels": ["cat", "cat", "dog"]}, "labels repeat"),
        ({"max_length": 0}, "max_length: "),
        ({"poolling": "last_step"}, "poolling: "),
        ({"image": {"height": 32}}, "image.width: "),
        ({"labels": None}, "labels: "),
        ({"resnet": {"layers": 5}}, "resnet: config.json says {'layers': 5}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    change: dict[str, Any], message: str, state: State, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as error:
        RECIPE.complete_config(FIELDS | change, state, tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["labels", "vocabulary", "max_length", "image"])
def test_a_config_that_lacks_what_tensors_cannot_show_is_refused(
    name: str, state: State, tmp_path: Path
) -> None:
    config_file = {field: value for field, value in FIELDS.items() if field != name}
    with pytest.raises(ExportError, match=f"{name}: "):
        RECIPE.complete_config(config_file, state, tmp_path)


def test_another_family_is_named_by_its_keys(tmp_path: Path) -> None:
    bert = {"bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}
    with pytest.raises(CheckpointMismatch) as error:
        RECIPE.complete_config(FIELDS, bert, tmp_path)
    assert "missing resnet_model.conv1.weight, token_embedding.weight" in str(error.value)
    assert "unexpected bert.embeddings.word_embeddings.weight" in str(error.value)


def test_an_unknown_key_of_the_family_is_refused(state: State, tmp_path: Path) -> None:
    strange = state | {"gru.extra": torch.ones(1)}
    config = RECIPE.complete_config(FIELDS, strange, tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"unexpected gru\.extra"):
        load_network(RECIPE, strange, config)


def test_a_head_that_is_neither_kind_is_refused(state: State) -> None:
    strange = head(state, state["resfc.weight"] + 1, state["resfc.bias"])
    with pytest.raises(CheckpointMismatch, match=r"resnet_model\.fc\.weight"):
        RECIPE.adapt(strange, FIELDS | SIZES)


@pytest.mark.parametrize(
    ("pooling", "inputs", "pad_to_max"),
    [
        ("last_step", ["image", "text_ids"], True),
        ("final_states", ["image", "text_ids", "text_length"], False),
    ],
)
def test_pooling_decides_inputs_and_padding(
    pooling: str, inputs: list[str], pad_to_max: bool, tmp_path: Path
) -> None:
    config = (
        FIELDS | SIZES | {"pooling": pooling, "multi_label": True, "pad_id": 0, "unknown_id": 2}
    )
    plan = RECIPE.graphs(RECIPE.build(config), config)["model"]
    assert [tensor.name for tensor in plan.inputs] == inputs
    assert plan.inputs[0].dims == ("batch", 3, 32, 24)
    assert plan.outputs[0].dims == ("batch", 3)
    interface = RECIPE.serve(config, tmp_path)
    assert interface.text is not None and interface.image is not None
    assert (interface.text.pad_to_max, interface.text.unknown_id) == (pad_to_max, 2)
    assert (interface.labels, interface.multi_label) == (("cat", "dog", "car"), True)
    assert json.loads((tmp_path / Path(interface.text.file).name).read_text(encoding="utf-8")) == {
        "a": 1,
        "猫": 9,
    }
    example = RECIPE.example("model", config, {"batch": 3, "text": 5}, seed=1)
    assert list(example) == inputs
    assert (example["text_ids"][:, -1] == 0).any(), "an example without padding proves little"


def test_the_order_of_a_vocabulary_does_not_change_the_archive(tmp_path: Path) -> None:
    contents = []
    for vocabulary in ({"a": 1, "猫": 9}, {"猫": 9, "a": 1}):
        RECIPE.serve(FIELDS | SIZES | {"vocabulary": vocabulary}, tmp_path)
        contents.append((tmp_path / "vocabulary.json").read_bytes())
    assert contents[0] == contents[1]


def test_safetensors_are_read(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").keys() == state.keys()
