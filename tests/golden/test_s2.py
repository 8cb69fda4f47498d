"""S2-Transformer's encoder and captions against zchoi/S2-Transformer's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.eager_graphs import assert_inference_outputs, load
from support.golden_cases import Case, cases
from support.written_captions import (
    assert_every_key_is_loaded_or_ignored,
    config_of,
    written,
)
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("s2", Path(__file__).parents[2] / "export")


@pytest.mark.parametrize("case", cases("s2"), ids=str)
def test_every_inference_output(case: Case, tmp_path: Path) -> None:
    images = case.arrays("inputs")["images"]
    model = load(RECIPE, case, config_of(case) | {"cells": images.shape[1]}, tmp_path)
    network: Any = model.network
    visual = torch.from_numpy(images)
    with torch.inference_mode():
        regions = network.SP(visual)
        cells_states, cells_mask = network.encoder(visual)
        regions_states, regions_mask = network.encoder(regions)
    outputs = {
        "pseudo_regions": regions.numpy(),
        "grid_enc": cells_states.numpy(),
        "grid_mask": cells_mask.numpy()[:, None, None] == 0,
        "pseudo_enc": regions_states.numpy(),
        "pseudo_mask": regions_mask.numpy()[:, None, None] == 0,
    }
    memory = model.run("encoder", visual=images)
    masks = np.concatenate([cells_mask.numpy(), regions_mask.numpy()], axis=1)
    np.testing.assert_array_equal(memory["memory_mask"], masks)
    assert_inference_outputs(case, outputs | written(case, model, memory))


def test_every_key_of_the_published_checkpoint_is_loaded_or_ignored() -> None:
    assert_every_key_is_loaded_or_ignored(RECIPE, "s2_transformer")
