"""The recipe that CONTRIBUTING.md writes, exported from a folder of its own."""

import json
import re
from pathlib import Path

import torch

from support.tiny_models import PROJECT
from vlserve.exporter.convert import Converter
from vlserve.exporter.export import ExportReport, export_archive
from vlserve.settings import Settings

NAME = "colours"
CONTRIBUTING = PROJECT / "CONTRIBUTING.md"


def written_recipe() -> str:
    """The one Python block of CONTRIBUTING.md that defines a RECIPE."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", CONTRIBUTING.read_text(), re.DOTALL | re.MULTILINE
    )
    (found,) = [block for block in blocks if "RECIPE =" in block]
    return found


def export_written(folder: Path, converter: Converter) -> ExportReport:
    """Recipe, checkpoint and config in ``folder``, as a reader would put them."""
    (folder / f"{NAME}.py").write_text(written_recipe(), encoding="utf-8")
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
