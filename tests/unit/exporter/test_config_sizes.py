"""Which numbers of a config.json are sizes of what is built."""

from typing import Any

import pytest
import torch

from vlserve.errors import ExportError
from vlserve.exporter.config_sizes import check_sizes

STATE = {f"layer.{place}": torch.empty(2, 5000, device="meta") for place in range(3)}


@pytest.mark.parametrize(
    "config",
    [
        {"hidden": 5000, "layers": 3, "blocks": 3},
        {"text": {"max_length": 4096}},
        {"image": {"max_bytes": 20 * 1024**2, "max_pixels": 50_000_000}},
        {"grid": {"image": {"max_bytes": 20 * 1024**2}, "width": 7}},
        {"regions": {"dim": 2048, "max_bytes": 20 * 1024**2}},
        {"training": {"seen": 10**12}},
    ],
)
def test_what_the_checkpoint_can_have_passes(config: dict[str, Any]) -> None:
    check_sizes(config, STATE)


@pytest.mark.parametrize(
    ("config", "entry"),
    [
        ({"hidden": 10**12}, "hidden is 1000000000000, and the checkpoint has no size over 5000"),
        ({"text": {"layers": 4}}, "text.layers is 4, and the checkpoint has 3 tensors"),
        ({"grid": {"image": {"height": 7}, "width": 5001}}, "grid.width is 5001"),
    ],
)
def test_what_it_cannot_have_is_named(config: dict[str, Any], entry: str) -> None:
    with pytest.raises(ExportError, match=entry):
        check_sizes(config, STATE)
