"""What one file in export/ must define: how a model family is read, built, fed and judged.

A recipe file defines ``RECIPE``, an object with the methods of `Recipe`. Files are loaded by path,
so that a family is added by one file and nothing here knows a family by name.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vlserve.errors import RecipeNotFound
from vlserve.project import Folder
from vlserve.runtime.manifest import ImageInput, RegionInput, TensorSpec, TextInput


@dataclass(frozen=True)
class Spec:
    """What the exporter and the tests know of a family before any checkpoint is read.

    ``reads``: the checkpoints, in words. ``golden``: what of the originals' numbers the family's
    tests hold it to, families of cases and lists of keys (``keys/…``); a test compares it with
    the tests themselves. ``reads_image_settings``: whether a field ``image`` that config.json
    leaves out is filled from transformers' preprocessor_config.json or processor_config.json.
    """

    family: str
    tasks: tuple[str, ...]
    rtol: float = 1e-4
    atol: float = 1e-5
    reads: tuple[str, ...] = ()
    golden: tuple[str, ...] = ()
    reads_image_settings: bool = False


@dataclass(frozen=True)
class GraphPlan:
    """One graph: a module in eval mode, its named inputs and outputs in call order."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    traced: nn.Module | None = None
    """What TorchScript traces instead, where a trace of ``module`` would bake sizes in."""


@dataclass(frozen=True)
class Served:
    """How requests become the graphs' inputs, and what the manifest says of the answers."""

    task: str
    image: ImageInput | None = None
    text: TextInput | None = None
    regions: RegionInput | None = None
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """One model family. ``config`` is the checkpoint's own config.json, parsed."""

    spec: Spec

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor], folder: Path
    ) -> dict[str, Any]:
        """Return ``config`` with what the checkpoint's tensors show filled in, and the files that
        it names (in ``folder``) read. ExportError, or CheckpointMismatch where config and tensors
        disagree or the tensors are of another family. The other methods take its result."""
        ...

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Return the network with random weights, keys as in the family's checkpoints."""
        ...

    def adapt(
        self, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Rename checkpoint keys to the network's; drops only keys on the family's written list of
        ignored ones, so that a strict load reports everything else."""
        ...

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        """Return preprocessing and labels. ``assets`` is a folder for files that travel in the
        archive (archive path ``assets/<name>``); the recipe writes its tokenizer file there."""
        ...

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        """Return the graphs of this network by name; a single graph is called ``model``."""
        ...

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, torch.Tensor]:
        """Return random inputs of one graph for the given sizes of its dynamic axes (``batch``,
        ``text``, …), with padding inside the batch wherever real batches have padding."""
        ...


def recipe_files(folder: Folder) -> list[Path]:
    """Return every recipe file of a folder, sorted by name."""
    files = (path for path in folder.glob("*.py") if not path.name.startswith("_"))
    return sorted(files, key=lambda path: path.name)


def recipe_path(name: str, folder: Folder) -> Path:
    """Return the file of recipe ``name``: the name itself where it is a path, else a file of
    ``folder``."""
    return Path(name) if name.endswith(".py") else folder / f"{name}.py"


def load_recipe(name: str, folder: Folder) -> Recipe:
    """Return the recipe ``name`` of ``folder``, or the file at path ``name``; RecipeNotFound
    otherwise."""
    path = recipe_path(name, folder)
    if not path.is_file():
        names: Sequence[str] = [file.stem for file in recipe_files(folder)]
        raise RecipeNotFound(f"no recipe {name}: {folder} has {', '.join(names) or 'none'}")
    module_name = f"vlserve_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses of the recipe look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeNotFound(f"{path} cannot be loaded: {error!r}") from error
    recipe = getattr(module, "RECIPE", None)
    if recipe is None:
        raise RecipeNotFound(f"{path} defines no RECIPE")
    return recipe  # type: ignore[no-any-return]
