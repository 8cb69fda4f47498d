"""The recipe examples/colours.py, exported from a folder of its own."""

import json
import shutil
from pathlib import Path

import torch

from support.tiny_models import PROJECT
from vlserve.exporter.convert import Converter, Format
from vlserve.exporter.export import ExportReport, export_archive
from vlserve.settings import Settings

NAME = "colours"
RECIPE = PROJECT / "examples" / f"{NAME}.py"


def export_example(folder: Path, converter: Converter, format: Format = "onnx") -> ExportReport:
    """Export the example, with recipe, checkpoint and config in ``folder``."""
    return export_recipe(Path(shutil.copy(RECIPE, folder)), folder, converter, PROJECT, format)


def export_recipe(
    recipe: Path,
    folder: Path,
    converter: Converter,
    project_dir: Path,
    format: Format = "onnx",
) -> ExportReport:
    """Export a recipe with the example's network; checkpoint and config are put in ``folder``."""
    torch.manual_seed(0)
    weights = {
        "words.weight": torch.randn(128, 3),
        "colour.weight": torch.randn(3, 3),
        "colour.bias": torch.zeros(3),
    }
    torch.save(weights, folder / f"{NAME}.pth")
    (folder / "config.json").write_text(
        json.dumps({"labels": ["red", "green", "blue"]}), encoding="utf-8"
    )
    return export_archive(
        str(recipe),
        folder / f"{NAME}.pth",
        folder / "build",
        format=format,
        settings=Settings(project_dir=project_dir),
        converter=converter,
    )
