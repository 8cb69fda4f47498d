"""A ResNet that looks at the image for a network that reads visual features.

A family whose graphs take ``visual`` may name a ResNet's checkpoint in its config.json:

    {"grid": {"checkpoint": "resnet50.safetensors", "image": {"height": 224, "width": 224}}}

Then its archive also has the graph ``features``: image (batch, 3, height, width) -> visual (batch,
cells, dim), the last feature map row by row, as many cells as the image's size makes. Without
``checkpoint`` the ResNet's tensors are in the family's own, under ``grid.``: it was trained along.
A recipe:

    complete_config   config["grid"] = complete_grid(config["grid"], folder, state)
    its Config        grid: GridConfig | None = None
    its network       self.grid = GridExtractor(config.grid.resnet)
    adapt             {**state, **grid_state(parsed.grid)}
    graphs            {"features": features_plan(network.grid, parsed.grid), …}
    example           example_inputs((image_axes(parsed.grid),), …)
    serve             Served(image=parsed.grid.image, …)
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vlserve.errors import ExportError
from vlserve.exporter.checkpoint import open_checkpoint
from vlserve.exporter.recipe import GraphPlan
from vlserve.exporter.weights import fit_names
from vlserve.families.config_file import check_against_tensors, section
from vlserve.models.resnet import (
    ResNet,
    ResNetConfig,
    cells,
    resnet_sizes,
    torchvision_names,
)
from vlserve.runtime.manifest import ImageInput, TensorSpec

PREFIX = "grid."
SIZE = {"height": 224, "width": 224}
"""In pixels, unless config.json says otherwise: 7 x 7 cells of a ResNet of four stages."""


class GridConfig(BaseModel):
    """``grid`` of a config.json, completed. There, ``checkpoint`` is the name of a file beside it;
    here it is its path, or None for the family's own. Of ``resnet`` only what tensors do not show
    need be said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str | None = None
    image: ImageInput
    resnet: ResNetConfig

    @property
    def cells(self) -> int:
        rows, columns = self.resnet.feature_map(self.image.height, self.image.width)
        return rows * columns

    @property
    def dim(self) -> int:
        return self.resnet.features


class GridExtractor(ResNet):
    """The graph ``features``: image (batch, 3, height, width) -> visual (batch, cells, dim)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)

    def forward(self, image: Tensor) -> Tensor:
        return cells(self.feature_map(image))


def complete_grid(
    value: Any, folder: Path, own: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Any]:
    """Return ``grid`` of a config.json in ``folder``, with what its checkpoint shows filled in, or,
    where it names none, what the family's ``own`` tensors do.

    ExportError for one that names no checkpoint where there are no such tensors; CheckpointMismatch
    for one that is no ResNet's or that says otherwise than its tensors."""
    along = {name.removeprefix(PREFIX): x for name, x in own.items() if name.startswith(PREFIX)}
    checkpoint = value.get("checkpoint") if isinstance(value, Mapping) else None
    if not isinstance(checkpoint, str) and (not along or not isinstance(value, Mapping)):
        raise ExportError('grid of config.json must be like {"checkpoint": "resnet50.safetensors"}')
    path = str((folder / checkpoint).resolve()) if isinstance(checkpoint, str) else None
    sizes = resnet_sizes(_resnet_of(Path(path)) if path else torchvision_names(along))
    resnet = section(value, "resnet")
    check_against_tensors(resnet, sizes)
    image = SIZE | section(value, "image")
    return {**value, "checkpoint": path, "image": image, "resnet": resnet | sizes}


def _resnet_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ResNet's checkpoint under torchvision's names. CheckpointMismatch for
    one that is no ResNet's."""

    def adapt(state: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = torchvision_names(state)
        resnet_sizes(tensors)
        return tensors

    _, tensors = fit_names(open_checkpoint(path), adapt)
    return tensors


def grid_state(config: GridConfig) -> dict[str, Tensor]:
    """Return the ResNet's tensors under ``grid.``, to go with the family's own where it lacks
    them."""
    if config.checkpoint is None:
        return {}
    state = _resnet_of(Path(config.checkpoint))
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}


def image_axes(config: GridConfig) -> TensorSpec:
    """Return the input of the graph ``features``."""
    size = (config.image.height, config.image.width)
    return TensorSpec(name="image", dtype="float32", dims=("batch", 3, *size))


def features_plan(extractor: GridExtractor, config: GridConfig) -> GraphPlan:
    """Return the graph ``features``."""
    visual = TensorSpec(name="visual", dtype="float32", dims=("batch", config.cells, config.dim))
    return GraphPlan(extractor, (image_axes(config),), (visual,))
