"""Where in a checkpoint the weights are, and under which names: found, said, or asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.checkpoint import load_into, open_checkpoint
from vlserve.exporter.export import read_trained
from vlserve.exporter.weights import NOT_WHOLE, find_weights, fit_names
from vlserve.settings import load_settings

TRAINED = {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(1)}
AVERAGED = {"fc.weight": torch.ones(2), "fc.bias": torch.ones(1)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
COLOURS = str(Path(__file__).parents[3] / "examples" / "colours.py")


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (TRAINED, ()),
        ({"net": TRAINED, "acc": 91.2, "epoch": 7}, ("the weights are those under the key net",)),
        ({"weights": TRAINED}, ("the weights are those under the key weights",)),
        ({"anything": TRAINED}, ("the weights are those under the key anything",)),
        ({"state": {"model": TRAINED}}, ("the weights are those under the key state.model",)),
        (
            {"model": TRAINED, "optimizer": OPTIMIZER, "rng": torch.ones(8, dtype=torch.uint8)},
            ("the weights are those under the key model",),
        ),
        (
            {
                "state_dict": TRAINED,
                "callbacks": {"Best{}": {"best_k_models": {"a.ckpt": torch.tensor(0.1)}}},
                "optimizer_states": [OPTIMIZER],
                "hyper_parameters": {"lr": 0.1},
            },
            ("the weights are those under the key state_dict",),
        ),
        ({**TRAINED, "epoch": 3, "best": 0.5}, ()),
        ({"model": {**TRAINED, "step": 3}}, ("the weights are those under the key model",)),
        (
            {"state_dict": TRAINED, "state_dict_ema": AVERAGED},
            (
                "the weights are those under the key state_dict; state_dict_ema holds weights too: "
                "--state state_dict_ema takes those",
            ),
        ),
        (
            {"ema": AVERAGED, "model": TRAINED},
            (
                "the weights are those under the key model; ema holds weights too: --state ema "
                "takes those",
            ),
        ),
        (
            {"student": TRAINED, "teacher": AVERAGED},
            (
                "the weights are those under the key student; teacher holds weights too: --state "
                "teacher takes those",
            ),
        ),
    ],
    ids=str,
)
def test_weights_are_found_and_it_is_said_where(content: Any, notes: tuple[str, ...]) -> None:
    weights = find_weights(content)
    assert weights.notes == notes
    assert weights.state.keys() == TRAINED.keys()
    assert torch.equal(weights.state["fc.weight"], TRAINED["fc.weight"])


def test_a_key_can_be_chosen() -> None:
    content = {"state_dict": TRAINED, "state_dict_ema": AVERAGED, "more": {"ema": AVERAGED}}
    for key, value in (("state_dict_ema", 1.0), ("more.ema", 1.0), ("state_dict", 0.0)):
        assert find_weights(content, key).state["fc.weight"][0] == value
    assert find_weights({"model.ema": AVERAGED}, "model.ema").state
    with pytest.raises(CheckpointMismatch, match="under the key ema: there are some under state_d"):
        find_weights(content, "ema")
    with pytest.raises(CheckpointMismatch, match=r"has no weights under the key ema$"):
        find_weights(TRAINED, "ema")


@pytest.mark.parametrize(
    "content",
    [
        {"generator": TRAINED, "discriminator": AVERAGED},
        {"state_dict": {"encoder": TRAINED, "decoder": AVERAGED}},
        {"best": TRAINED, "last": AVERAGED},
    ],
    ids=str,
)
def test_where_it_is_not_clear_which_weights_are_meant_they_are_asked_for(content: Any) -> None:
    with pytest.raises(
        CheckpointMismatch, match=r"holds weights under 2 keys, .* --state KEY choos"
    ):
        find_weights(content)


def wrapped(kind: str) -> nn.Module:
    network: nn.Module = nn.Sequential(nn.Linear(2, 3))
    if kind == "averaged":
        return AveragedModel(network)
    for word in reversed(kind.split(".")):
        network = nn.ModuleDict({word: network})
    return network


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("module", "module."),
        ("_orig_mod", "_orig_mod."),
        ("module._orig_mod", "_orig_mod., module."),
        ("_orig_mod.module", "_orig_mod., module."),
        ("_fsdp_wrapped_module._orig_mod", "_fsdp_wrapped_module., _orig_mod."),
        ("averaged", "module., n_averaged"),
    ],
)
def test_what_wrappers_of_torch_put_into_names_is_taken_off(kind: str, names: str) -> None:
    weights = find_weights(wrapped(kind).state_dict())
    assert weights.notes == (f"the keys are read without {names}",)
    load_into(nn.Sequential(nn.Linear(2, 3)), weights.state, "linear")


def test_a_part_that_was_compiled_alone_has_its_own_names() -> None:
    state = {"backbone._orig_mod.conv.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert set(find_weights(state).state) == {"backbone.conv.weight", "fc.weight"}
    both = {"_orig_mod.fc.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    with pytest.raises(CheckpointMismatch, match=r"two of the keys are fc\.weight without _orig"):
        find_weights(both)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base_model.model.fc.lora_A.weight", "adapters (LoRA)"),
        ("fc.lora_B.default.weight", "adapters (LoRA)"),
        ("fc.qweight", "weights that were quantised"),
        ("fc.weight.absmax", "weights that were quantised"),
        ("fc._packed_params.dtype", "weights that were quantised"),
        ("_fsdp_wrapped_module._flat_param", "the flattened parameters of FSDP"),
        ("flat_param_0", "the flattened parameters of FSDP"),
    ],
)
def test_what_is_not_a_networks_whole_weights_is_named(name: str, content: str) -> None:
    with pytest.raises(CheckpointMismatch) as refusal:
        find_weights({"model": {**TRAINED, name: torch.ones(2)}})
    assert f"holds {content}" in str(refusal.value) and f"({name})" in str(refusal.value)
    assert any(str(refusal.value).endswith(kind.do) for kind in NOT_WHOLE)


def accepts(*names: str) -> Any:
    def attempt(state: dict[str, torch.Tensor]) -> list[str]:
        if set(state) != set(names):
            raise CheckpointMismatch(f"not it: {', '.join(state)}")
        return list(state)

    return attempt


def test_a_prefix_is_taken_off_only_where_the_names_do_not_fit_with_it() -> None:
    weights = find_weights({"model.net.w": torch.ones(1), "model.net.b": torch.ones(1)})
    for prefix in ("", "model.", "model.net."):
        names = [f"model.net.{name}".removeprefix(prefix) for name in ("w", "b")]
        assert fit_names(weights, accepts(*names)) == (prefix, names)
    with pytest.raises(CheckpointMismatch) as refusal:
        fit_names(weights, accepts("x"))
    assert str(refusal.value) == (
        "not it: model.net.w, model.net.b; without the prefix model.net. of every key: not it: w, b"
    )
    with pytest.raises(CheckpointMismatch, match=r"^not it: a\.w, b\.w$"):
        fit_names(find_weights({"a.w": torch.ones(1), "b.w": torch.ones(1)}), accepts("x"))


@pytest.mark.parametrize("prefix", ["", "model.", "lightning.net."])
def test_a_recipe_gets_the_names_that_it_knows(prefix: str, tmp_path: Path) -> None:
    state = {
        "words.weight": torch.randn(128, 3),
        "colour.weight": torch.randn(3, 3),
        "colour.bias": torch.zeros(3),
    }
    tensors = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({"net": tensors, "ema": tensors}, tmp_path / "m.pth")
    (tmp_path / "config.json").write_text(json.dumps({"labels": ["a", "b", "c"]}), encoding="utf-8")
    source = read_trained(COLOURS, tmp_path / "m.pth", None, load_settings())
    assert source.prefix == prefix
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, state[name])
    notes = [f"the prefix {prefix} was taken off all keys"] if prefix else []
    assert list(source.notes[1:]) == notes
    assert source.notes[0].startswith("the weights are those under the key net; ema holds")
    assert (
        open_checkpoint(tmp_path / "m.pth", "ema")
        .notes[0]
        .startswith("the weights are those under the key ema")
    )
