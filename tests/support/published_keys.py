"""Key lists of the full-size public checkpoints: all that is known of them here."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from support.golden_cases import key_shapes
from vlserve.exporter.recipe import Recipe
from vlserve.exporter.wordpiece import SPECIAL
from vlserve.models.keys import is_ignored


def assert_every_key_is_loaded_or_ignored(recipe: Recipe, name: str, added_tokens: int = 0) -> None:
    """And every parameter of the network is there, of the right shape."""
    shapes = key_shapes(name)
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    rows = next(shape[0] for key, shape in shapes.items() if key.endswith("word_embeddings.weight"))
    config = recipe.complete_config({"vocabulary": words(rows - added_tokens)}, state, Path())
    with torch.device("meta"):
        network = recipe.build(config)
    tensors, names = recipe.adapt(state, config), network.state_dict()
    assert tensors.keys() == names.keys()
    assert all(tensor.shape == names[key].shape for key, tensor in tensors.items())

    patterns = sys.modules[type(recipe).__module__].IGNORED
    ignored_keys = {key for key in shapes if is_ignored(key, patterns)}
    assert not ignored_keys & names.keys()
    head = "text_decoder.cls.predictions.decoder."
    second_names = {key for key in shapes if key.startswith(head)}
    assert len(tensors) == len(shapes) - len(ignored_keys) - len(second_names)


def words(number: int) -> Sequence[str]:
    """A vocabulary of that size."""
    return [*SPECIAL, *(f"word{index}" for index in range(number - len(SPECIAL)))]
