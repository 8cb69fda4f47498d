"""Meshed-Memory Transformer's encoder and captions against the original's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.eager_graphs import assert_inference_outputs, load
from support.golden_cases import Case, cases
from support.written_captions import (
    assert_every_key_is_loaded_or_ignored,
    beams,
    config_of,
    written,
)
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("m2", Path(__file__).parents[2] / "export")


@pytest.mark.parametrize("case", cases("m2"), ids=str)
def test_every_inference_output(case: Case, tmp_path: Path) -> None:
    """The mask says which rows are the image's own; the original sees the padding after them."""
    images = case.arrays("inputs")["images"]
    rows = images.shape[1]
    config = config_of(case) | {"max_regions": rows, "padded_to": rows}
    model = load(RECIPE, case, config, tmp_path)
    own = (images != 0).any(axis=2)
    network: Any = model.network
    with torch.inference_mode():
        states = network.encoder(torch.from_numpy(images), torch.ones(own.shape))
    memory = model.run("encoder", visual=images, visual_mask=own.astype("int64"))
    outputs = {"enc": states.numpy(), "enc_mask": memory["memory_mask"][:, None, None] == 0}
    assert_inference_outputs(case, outputs | written(case, model, memory))


@pytest.mark.parametrize("case", cases("m2"), ids=str)
def test_regions_of_a_shorter_request_are_padded_as_in_the_original(
    case: Case, tmp_path: Path
) -> None:
    """An image's own rows alone, without the zeros after them, give the same captions."""
    images = case.arrays("inputs")["images"]
    rows = images.shape[1]
    config = config_of(case) | {"max_regions": rows, "padded_to": rows}
    model = load(RECIPE, case, config, tmp_path)
    reference = case.arrays("outputs")["beam_out_all"]
    for index, image in enumerate(images):
        own = image[(image != 0).any(axis=1)]
        mask = np.ones((1, len(own)), dtype=np.int64)
        memory = model.run("encoder", visual=own[None], visual_mask=mask)
        assert memory["memory_mask"].shape == (1, rows)
        ids, _, _ = beams(model, memory)
        np.testing.assert_array_equal(ids[0], reference[index])


def test_every_key_of_the_published_checkpoint_is_loaded_or_ignored() -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, "m2_transformer")
