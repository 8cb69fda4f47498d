"""What the speed runs serve by default: a full-size ResNet18-GRU tagger with random weights, which
takes as long as a trained one. Made once, under .vlserve/bench."""

import json
from collections.abc import Sequence
from pathlib import Path

from vlserve.cli.output import print_line
from vlserve.exporter.pack import archive_name

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / ".vlserve" / "bench" / "archives"
MODEL = "tagger"
RECIPE = "resnet_gru"
CONFIG = {
    "labels": [f"label-{number:02d}" for number in range(20)],
    "vocabulary": {chr(code): code - 0x1E for code in range(0x20, 0x7F)},
    "max_length": 40,
    "unknown_id": 1,
    "pooling": "final_states",
    "image": {"height": 224, "width": 224},
    "hidden": 256,
    "embedding_size": 128,
}


def default_checkpoint() -> Path:
    """model.safetensors, with its config.json beside it."""
    path = FOLDER / "checkpoint" / "model.safetensors"
    if not path.is_file():
        import torch
        from safetensors.torch import save_file

        from vlserve.exporter.recipe import load_recipe

        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = load_recipe(RECIPE, PROJECT / "export").build(CONFIG)
        path.with_name("config.json").write_text(json.dumps(CONFIG))
        save_file(network.state_dict(), path)
    return path


def default_archives() -> Sequence[Path]:
    """fp32."""
    path = FOLDER / archive_name(MODEL, 1)
    if not path.is_file():
        from vlserve.exporter.export import export_archive

        export_archive(
            RECIPE, default_checkpoint(), FOLDER, name=MODEL, version=1, progress=print_line
        )
    return [path]
