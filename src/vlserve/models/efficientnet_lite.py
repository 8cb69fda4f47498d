"""EfficientNet-Lite, with the parameter names of the PyTorch conversion of its checkpoints.

Tan and Le, EfficientNet (arXiv:1905.11946), in the Lite variant of tensorflow/tpu: no squeeze and
excitation, ReLU6 for swish, stem and head of fixed width. Convolutions are padded as TensorFlow
pads them ("SAME"): by as much as the image needs, the odd pixel right and below.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-3


class Stage(BaseModel):
    """Blocks in a row, of which the first changes the size of the feature map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int = Field(ge=1)
    kernel: int = Field(ge=1)
    stride: int = Field(ge=1, le=2)
    expansion: int = Field(ge=1)
    channels: int = Field(ge=1)


def _stage(blocks: int, kernel: int, stride: int, expansion: int, channels: int) -> Stage:
    return Stage(
        blocks=blocks, kernel=kernel, stride=stride, expansion=expansion, channels=channels
    )


LITE0 = (
    _stage(1, 3, 1, 1, 16),
    _stage(2, 3, 2, 6, 24),
    _stage(2, 5, 2, 6, 40),
    _stage(3, 3, 2, 6, 80),
    _stage(3, 5, 1, 6, 112),
    _stage(4, 5, 2, 6, 192),
    _stage(1, 3, 1, 6, 320),
)

LITE2 = (
    _stage(1, 3, 1, 1, 16),
    _stage(3, 3, 2, 6, 24),
    _stage(3, 5, 2, 6, 48),
    _stage(4, 3, 2, 6, 88),
    _stage(4, 5, 1, 6, 120),
    _stage(5, 5, 2, 6, 208),
    _stage(1, 3, 1, 6, 352),
)
"""Lite0's with 1.1 times its channels, in steps of 8, and 1.2 times its blocks, rounded up."""


class EfficientNetLiteConfig(BaseModel):
    """Sizes; those of Lite0 by default. ``features``: channels of the last feature map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: int = Field(default=32, ge=1)
    stages: tuple[Stage, ...] = Field(default=LITE0, min_length=1)
    features: int = Field(default=1280, ge=1)

    def feature_map(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last feature map of an image, in pixels."""
        for stride in (2, *(stage.stride for stage in self.stages)):
            height, width = -(-height // stride), -(-width // stride)
        return height, width


class SameConv(nn.Conv2d):
    """A convolution without bias whose output is as large as its input, divided by the stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class Block(nn.Module):
    """Inverted bottleneck: widen, look around in each channel, narrow."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.widens, self.adds = stage.expansion > 1, stride == 1 and inputs == stage.channels
        if self.widens:
            self._expand_conv = SameConv(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, NORM_EPS)
        self._depthwise_conv = SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, NORM_EPS)
        self._project_conv = SameConv(inner, stage.channels, 1)
        self._bn2 = nn.BatchNorm2d(stage.channels, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, channels, height / stride, width / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        output: Tensor = x + y if self.adds else y
        return output


class EfficientNetLite(nn.Module):
    """``classes`` 0: no classifier, as where only the feature map is wanted."""

    def __init__(self, config: EfficientNetLiteConfig, classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self._conv_stem = SameConv(3, config.stem, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(config.stem, NORM_EPS)
        self._blocks = nn.ModuleList(_blocks(config.stem, config.stages))
        self._conv_head = SameConv(config.stages[-1].channels, config.features, 1)
        self._bn1 = nn.BatchNorm2d(config.features, NORM_EPS)
        if classes:
            self._fc = nn.Linear(config.features, classes)

    def feature_map(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, features, height / 32, width / 32), rounded up."""
        x = F.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        logits: Tensor = self._fc(self.feature_map(image).mean(dim=(2, 3)))
        return logits


def _blocks(inputs: int, stages: Sequence[Stage]) -> list[Block]:
    blocks = []
    for stage in stages:
        for place in range(stage.blocks):
            blocks.append(Block(inputs, stage, stage.stride if place == 0 else 1))
            inputs = stage.channels
    return blocks


def efficientnet_lite_sizes(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, int]:
    """Return the fields of EfficientNetLiteConfig that a checkpoint's tensors show but the stages:
    their strides are not to be seen."""
    return {
        "stem": state[f"{prefix}_conv_stem.weight"].shape[0],
        "features": state[f"{prefix}_conv_head.weight"].shape[0],
    }
