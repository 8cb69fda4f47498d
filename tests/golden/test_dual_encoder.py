"""The dual encoder against its formula, in numpy. Its encoders are held against the originals in
test_modern.py."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from support.golden_cases import assert_close
from support.tiny_models import dual_encoder_model, seeded
from vlserve.exporter.recipe import load_recipe

RECIPE = load_recipe("dual_encoder", Path(__file__).parents[2] / "export")


def projected(head: Any, features: NDArray[np.floating]) -> NDArray[np.floating]:
    norm, linear = (
        {name: x.detach().double().numpy() for name, x in module.named_parameters()}
        for module in head
    )
    x = features.astype(np.float64)
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    y = (x * norm["weight"] + norm["bias"]) @ linear["weight"].T + linear["bias"]
    return y / np.sqrt((y**2).sum(axis=1, keepdims=True))


@torch.inference_mode()
def test_both_vectors_equal_the_formula() -> None:
    config = dual_encoder_model().built
    network: Any = seeded(RECIPE.build(config), seed=3)
    plans = RECIPE.graphs(network, config)
    image = torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    cells = network.encoder.image.feature_map(image).flatten(2).numpy()
    expected = projected(network.head.image, cells.mean(axis=2))
    assert_close(plans["image"].module(image).numpy(), expected, "image_embedding")

    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 3, 0, 0]])
    mask = (ids != 0).long()
    states = network.encoder.text(ids, mask).numpy()
    means = np.stack(
        [
            row[: int(row_mask.sum())].mean(axis=0)
            for row, row_mask in zip(states, mask, strict=True)
        ]
    )
    expected = projected(network.head.text, means)
    assert_close(plans["text"].module(ids, mask).numpy(), expected, "text_embedding")
