"""ResNet as a feature extractor: an image as one unit vector, and as a grid of features.

    image (batch, 3, height, width) -> last feature map -> image_states (batch, cells, features)
    image_embedding (batch, features) = the mean over the cells, as a unit vector

He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385). Checkpoints in
torchvision's layout and in transformers' (microsoft/resnet-*, with transformers' config.json) are
read; the classifier is left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.errors import ExportError
from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.families.config_file import check_against_tensors, parse_config, section
from vlserve.families.examples import example_inputs
from vlserve.models.resnet import (
    HEADS,
    ResNet,
    ResNetConfig,
    cells,
    resnet_sizes,
    torchvision_names,
)
from vlserve.runtime.manifest import ImageInput, TensorSpec

FAMILY = "resnet"
ATOL = 1e-4
"""Full-size features are of the order of 10."""
IGNORED = HEADS
IMAGE = {"height": 224, "width": 224}


class Config(BaseModel):
    """config.json beside a checkpoint; there all may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["resnet"] = "resnet"
    task: Literal["embed"] = "embed"
    image: ImageInput
    resnet: ResNetConfig
    training: dict[str, Any] = Field(default_factory=dict)
    """Where the checkpoint comes from; not read."""


class ImageGraph(nn.Module):
    """The cells' features, row by row, and the image's unit vector."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) -> (batch, cells, features), (batch, features)."""
        feature_map = self.network.feature_map(image)
        return cells(feature_map), F.normalize(self.network.pool(feature_map), dim=-1)


class ResNetRecipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=("embed",),
        atol=ATOL,
        reads=(
            "resnet*.pth (torchvision)",
            "microsoft/resnet-* (transformers)",
        ),
        reads_image_settings=True,
        golden=(
            "hf",
            "resnet",
            "keys/resnet18",
        ),
    )

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        fields = from_transformers(config) if config.get("model_type") == FAMILY else dict(config)
        sizes, values = resnet_sizes(torchvision_names(state)), section(fields, "resnet")
        check_against_tensors(values, sizes)
        image = IMAGE | section(fields, "image")
        return parse({**fields, "image": image, "resnet": values | sizes}).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return ResNet(parse(config).resnet)

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return torchvision_names(state)

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        return Served(task=settings.task, image=settings.image)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, ResNet)
        settings = parse(config)
        size = (settings.image.height, settings.image.width)
        rows, columns = settings.resnet.feature_map(*size)
        features = settings.resnet.features
        states = TensorSpec(
            name="image_states", dtype="float32", dims=("batch", rows * columns, features)
        )
        vector = TensorSpec(name="image_embedding", dtype="float32", dims=("batch", features))
        return {"image": GraphPlan(ImageGraph(network), (image_input(settings),), (states, vector))}

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        return example_inputs((image_input(parse(config)),), sizes, seed, vocabulary=0)


def image_input(config: Config) -> TensorSpec:
    size = (config.image.height, config.image.width)
    return TensorSpec(name="image", dtype="float32", dims=("batch", 3, *size))


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


def from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' config.json -> ours, of which it may hold fields as well."""
    from transformers import ResNetConfig as TheirConfig

    theirs = TheirConfig(**config)
    if theirs.hidden_act != "relu":
        raise ExportError(
            f"config.json of a resnet checkpoint: hidden_act is {theirs.hidden_act}, not relu"
        )
    resnet = {
        "first_stride": 2 if theirs.downsample_in_first_stage else 1,
        "strides_in": "1x1" if theirs.downsample_in_bottleneck else "3x3",
    }
    return {"resnet": resnet} | {
        name: config[name] for name in Config.model_fields if name in config
    }


RECIPE = ResNetRecipe()
