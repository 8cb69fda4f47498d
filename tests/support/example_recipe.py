"""The recipe examples/colours.py, exported from a folder of its own."""

import json
import shutil
from pathlib import Path

import torch

from support.tiny_models import PROJECT
from vlserve.exporter.convert import Converter
from vlserve.exporter.export import ExportReport, export_archive
from vlserve.settings import Settings

NAME = "colours"
RECIPE = PROJECT / "examples" / f"{NAME}.py"


def export_example(folder: Path, converter: Converter) -> ExportReport:
    """Recipe, checkpoint and config in ``folder``, as a reader would put them."""
    shutil.copy(RECIPE, folder)
    torch.manual_seed(0)
    weights = {
        "words.weight": torch.randn(128, 3),
        "colour.weight": torch.randn(3, 3),
        "colour.bias": torch.zeros(3),
    }
    torch.save(weights, folder / f"{NAME}.pth")
    (folder / "config.json").write_text(json.dumps({"labels": ["red", "green", "blue"]}))
    return export_archive(
        str(folder / f"{NAME}.py"),
        folder / f"{NAME}.pth",
        folder / "build",
        settings=Settings(project_dir=PROJECT),
        converter=converter,
    )
