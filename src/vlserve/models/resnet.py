"""ResNet with the parameter names of torchvision's (version 1.5: a bottleneck strides in its 3x3).

He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385). Checkpoints in
torchvision's layout and in transformers' are read.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.keys import check_keys, count_layers, is_ignored

HEADS = (r"fc\.(weight|bias)", r"classifier\.1\.(weight|bias)")
"""Keys of the classifier, in both layouts, which features do not need."""
TRANSFORMERS_NAMES = (
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
)
_BLOCK = re.compile(r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)$")
_CONVOLUTION = re.compile(r"^layer\.(\d+)\.(convolution|normalization)\.")


class ResNetConfig(BaseModel):
    """``layers``: blocks in each stage; ``width``: channels of the stem, and of the first stage,
    unless ``channels`` says how many each stage has (in a bottleneck's 3x3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: Literal["BasicBlock", "Bottleneck"] = "BasicBlock"
    layers: tuple[int, ...] = Field(default=(2, 2, 2, 2), min_length=1)
    width: int = Field(default=64, ge=1)
    channels: tuple[int, ...] = ()
    """Empty: ``width``, doubled from stage to stage."""
    first_stride: Literal[1, 2] = 1
    """Of the first stage."""
    strides_in: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a bottleneck."""

    @model_validator(mode="after")
    def _every_stage_has_channels(self) -> Self:
        if self.channels and len(self.channels) != len(self.layers):
            raise ValueError(f"{len(self.channels)} channels for {len(self.layers)} stages")
        return self

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return self.channels or tuple(self.width * 2**index for index in range(len(self.layers)))

    @property
    def features(self) -> int:
        """Channels of the last feature map."""
        block = BasicBlock if self.block == "BasicBlock" else Bottleneck
        return self.stage_channels[-1] * block.expansion

    def feature_map(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last feature map of an image."""
        halvings = 2 + len(self.layers) - 1 + (self.first_stride == 2)
        for _ in range(halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


class BasicBlock(nn.Module):
    """3x3, 3x3, plus the shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, strides_in: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride (or the 1x1 has it), 1x1 to four times the channels, plus the
    shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, strides_in: str) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        first, second = (stride, 1) if strides_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(channels_in, channels, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class ResNet(nn.Module):
    """(batch, 3, height, width) -> (batch, features), or (batch, classes) with a head ``fc``."""

    def __init__(self, config: ResNetConfig, classes: int | None = None) -> None:
        super().__init__()
        width = config.width
        block = BasicBlock if config.block == "BasicBlock" else Bottleneck
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)  # (batch, width, h / 2, w / 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)  # (batch, width, h / 4, w / 4)
        self.stages = [f"layer{index}" for index, _ in enumerate(config.layers, start=1)]
        self.channels = width
        stages = zip(self.stages, config.stage_channels, config.layers, strict=True)
        for index, (name, channels, blocks) in enumerate(stages):
            stage = nn.Sequential()  # after four stages (batch, features, h / 32, w / 32)
            for place in range(blocks):
                stride = (2 if index else config.first_stride) if place == 0 else 1
                stage.append(block(self.channels, channels, stride, config.strides_in))
                self.channels = channels * block.expansion
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = None if classes is None else nn.Linear(self.channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map: (batch, features, rows, columns)."""
        x: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x

    def pool(self, feature_map: Tensor) -> Tensor:
        """(batch, features, rows, columns) -> (batch, features)."""
        features: Tensor = self.avgpool(feature_map).flatten(1)
        return features

    def forward(self, image: Tensor) -> Tensor:
        features = self.pool(self.feature_map(image))
        return features if self.fc is None else F.linear(features, self.fc.weight, self.fc.bias)


def cells(feature_map: Tensor) -> Tensor:
    """(batch, features, rows, columns) -> (batch, rows * columns, features), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of either layout to torchvision's, without the classifier's."""
    return {_torchvision_name(n): tensor for n, tensor in state.items() if not is_ignored(n, HEADS)}


def _torchvision_name(name: str) -> str:
    if match := _BLOCK.match(name):
        stage, block, suffix = match.groups()
        suffix = suffix.replace("shortcut.convolution.", "downsample.0.")
        suffix = suffix.replace("shortcut.normalization.", "downsample.1.")
        if part := _CONVOLUTION.match(suffix):
            kind = "conv" if part[2] == "convolution" else "bn"
            suffix = f"{kind}{int(part[1]) + 1}.{suffix[part.end() :]}"
        return f"layer{int(stage) + 1}.{block}.{suffix}"
    for pattern, ours in TRANSFORMERS_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def resnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of ResNetConfig that a checkpoint's tensors, under torchvision's names,
    show: all but where it strides. CheckpointMismatch if it is no ResNet's."""
    stages = max(1, count_layers(state, "layer"))
    firsts = [f"layer{index}.0.conv1.weight" for index in range(1, stages + 1)]
    check_keys(
        "resnet",
        missing=[name for name in ("conv1.weight", "bn1.weight", *firsts) if name not in state],
        unexpected=[name for name in state if not name.startswith(("conv1.", "bn1.", "layer"))],
    )
    width = state["conv1.weight"].shape[0]
    channels = [state[name].shape[0] for name in firsts]
    defaults = [width * 2**index for index in range(stages)]
    return {
        "block": "Bottleneck" if "layer1.0.conv3.weight" in state else "BasicBlock",
        "layers": [count_layers(state, f"layer{index}.") for index in range(1, stages + 1)],
        "width": width,
        "channels": [] if channels == defaults else channels,
    }
