"""Meshed-Memory Transformer: captions from the features of image regions.

    visual (batch, regions, features) -> encoder, whose attention also sees learned slots
      -> states of each layer (batch, levels, regions, hidden)
    a decoder reads all levels, each through a gate of its own, and writes word by word

Cornia et al., Meshed-Memory Transformer for Image Captioning (arXiv:1912.08226),
github.com/aimagelab/meshed-memory-transformer. Position embeddings are those of the checkpoint:
training leaves them random, and they are no sinusoids.

Padding. The original fills images with few regions up to 50 with rows of zeros, and derives a mask
from the output of a LayerNorm, which is not 0 there: in effect it sees the padding. Here a mask
says which rows are the image's own, and ``padded_to`` up to where the network sees zeros.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.exporter.recipe import GraphPlan, Served, Spec
from vlserve.families import captioner as parts
from vlserve.families.captioner import BUFFERS, CaptionerConfig
from vlserve.families.captioning_graphs import memory_tensors, step_inputs, step_plan
from vlserve.families.config_file import parse_config
from vlserve.families.examples import example_inputs
from vlserve.families.grid import GridExtractor, features_plan, image_axes
from vlserve.models.attention import mask_bias, split_heads
from vlserve.models.captioning import (
    CaptionDecoder,
    DecoderLayer,
    FeedForward,
    LayerSizes,
    MultiHeadAttention,
    Projections,
)
from vlserve.runtime.manifest import TensorSpec
from vlserve.training.finetune.plan import CaptionerPlan

FAMILY = "m2"
ATOL = 1e-4
"""Full-size logits are of the order of 10."""
PARTS = ("encoder.", "decoder.")
IGNORED = BUFFERS
LEVELS = 3
"""Layers of the encoder that the decoder reads, the first ones."""


class Config(CaptionerConfig):
    """See CaptionerConfig."""

    family: Literal["m2"] = "m2"
    max_regions: int = Field(default=50, ge=1)
    """Of a request."""
    padded_to: int = Field(default=0, ge=0)
    """Fewer regions are followed by zeros up to this number, which the network sees; 0: it sees
    the image's own alone."""
    slots: int = Field(ge=0)

    @model_validator(mode="after")
    def _regions_fit(self) -> Self:
        if self.encoder.layers < LEVELS:
            raise ValueError(f"the encoder has {self.encoder.layers} layers, {LEVELS} are read")
        most = max(self.max_regions, self.grid.cells if self.grid else 0)
        if 0 < self.padded_to < most:
            raise ValueError(f"padded_to is under the {most} regions that a request may have")
        if self.grid and self.grid.cells > self.max_regions:
            raise ValueError(f"the grid has {self.grid.cells} cells, over max_regions")
        return self


class SlotProjections(Projections):
    """And the keys and values of the slots."""

    def __init__(self, sizes: LayerSizes, slots: int) -> None:
        super().__init__(sizes)
        self.m_k = nn.Parameter(torch.randn(1, slots, sizes.heads * sizes.key_size))
        self.m_v = nn.Parameter(torch.randn(1, slots, sizes.heads * sizes.value_size))


class SlotAttention(MultiHeadAttention):
    """Keys and values are followed by learned ones, the same for every image."""

    attention: SlotProjections

    def __init__(self, sizes: LayerSizes, slots: int) -> None:
        super().__init__(sizes)
        self.slots = slots
        self.attention = SlotProjections(sizes, slots)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, regions, hidden) -> two of (batch, heads, regions + slots, size)."""
        key, value = super().keys_values(x)
        m_k = split_heads(self.attention.m_k, self.heads) * key.shape[3] ** 0.5
        m_v = split_heads(self.attention.m_v, self.heads) * self.slots**0.5
        every = (x.shape[0], -1, -1, -1)
        return (
            torch.cat([key, m_k.expand(*every)], dim=2),
            torch.cat([value, m_v.expand(*every)], dim=2),
        )


class EncoderLayer(nn.Module):
    def __init__(self, sizes: LayerSizes, slots: int) -> None:
        super().__init__()
        self.mhatt = SlotAttention(sizes, slots)
        self.pwff = FeedForward(sizes)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        encoded: Tensor = self.pwff(self.mhatt(x, *self.mhatt.keys_values(x), bias))
        return encoded


class Encoder(nn.Module):
    def __init__(self, sizes: LayerSizes, features: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.layers = nn.ModuleList(EncoderLayer(sizes, slots) for _ in range(sizes.layers))
        self.fc = nn.Linear(features, sizes.hidden)
        self.layer_norm = nn.LayerNorm(sizes.hidden)

    def forward(self, visual: Tensor, mask: Tensor) -> Tensor:
        """(batch, regions, features), (batch, regions) -> (batch, layers, regions, hidden)."""
        x = self.layer_norm(F.relu(self.fc(visual)))
        bias = F.pad(mask_bias(mask), (0, self.slots))  # every slot is seen
        states = []
        for layer in self.layers:
            x = layer(x, bias)
            states.append(x)
        return torch.stack(states, 1)


class MeshedLayer(DecoderLayer):
    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__(sizes)
        self.fc_alpha1 = nn.Linear(2 * sizes.hidden, sizes.hidden)
        self.fc_alpha2 = nn.Linear(2 * sizes.hidden, sizes.hidden)
        self.fc_alpha3 = nn.Linear(2 * sizes.hidden, sizes.hidden)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor, Tensor],
        is_word: Tensor,
    ) -> Tensor:
        x = self.self_att(x, *past) * is_word
        key, value, bias = memory
        gates = (self.fc_alpha1, self.fc_alpha2, self.fc_alpha3)
        contexts = []
        for level, gate in enumerate(gates):
            context = self.look(x, key[:, level], value[:, level], bias) * is_word
            contexts.append(context * torch.sigmoid(gate(torch.cat([x, context], dim=-1))))
        mixture = sum(contexts[1:], contexts[0]) / LEVELS**0.5
        out: Tensor = self.pwff(mixture * is_word) * is_word
        return out


class Captioner(nn.Module):
    """Parameter names are those of the original's checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.decoder
        self.encoder = Encoder(config.encoder, config.features, config.slots)
        layers = [MeshedLayer(sizes) for _ in range(sizes.layers)]
        self.decoder = CaptionDecoder(
            layers, len(config.words), config.positions, sizes.hidden, config.pad_id
        )
        if config.grid:
            self.grid = GridExtractor(config.grid.resnet)


class EncoderGraph(nn.Module):
    """Visual features -> what the decoder reads of them."""

    def __init__(self, network: Captioner, padded_to: int) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.padded_to = padded_to

    def forward(self, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """visual (batch, regions, features), visual_mask (batch, regions) -> see
        vlserve.models.captioning."""
        mask = visual_mask
        if self.padded_to:
            visual, mask = self.with_seen_padding(visual, mask)
        states = self.encoder(visual, mask)[:, :LEVELS]
        return *self.decoder.memory(states), mask.clone()

    def with_seen_padding(self, visual: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of zeros after the image's own, up to ``padded_to``, all of them seen."""
        own = visual * mask.unsqueeze(2)
        zeros = torch.zeros_like(own[:, :1]).expand(-1, self.padded_to, -1)
        padded = torch.cat([own, zeros], dim=1)[:, : self.padded_to]
        return padded, torch.ones_like(padded[:, :, 0], dtype=torch.int64)


class M2Recipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=("caption",),
        atol=ATOL,
        reads=("meshed_memory_transformer.pth (aimagelab/meshed-memory-transformer)",),
        golden=(
            "m2",
            "keys/m2_transformer",
        ),
    )

    finetuning = CaptionerPlan(masked=True)

    def complete_config(
        self, config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        tensors = parts.without_ignored(state, IGNORED)
        full_config = parts.complete(config, tensors, folder, FAMILY, PARTS, shown)
        return parse(full_config).model_dump(mode="json")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return Captioner(parse(config))

    def adapt(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        return parts.with_grid(parts.without_ignored(state, IGNORED), parse(config))

    def serve(self, config: Mapping[str, Any], assets: Path) -> Served:
        settings = parse(config)
        return parts.served(settings, settings.max_regions, assets)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, Captioner)
        settings = parse(config)
        sizes, levels = settings.decoder, (LEVELS,)
        encoder = EncoderGraph(network, settings.padded_to)
        memory = memory_tensors(sizes, settings.padded_to or "regions", levels)
        plans = {
            "encoder": GraphPlan(encoder, graph_inputs(settings)["encoder"], memory),
            "step": step_plan(network.decoder, sizes, levels),
        }
        if settings.grid:
            plans["features"] = features_plan(network.grid, settings.grid)
        return plans

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        return example_inputs(graph_inputs(settings)[graph], sizes, seed, len(settings.words))


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    dims = ("batch", "regions", config.features)
    visual = TensorSpec(name="visual", dtype="float32", dims=dims)
    mask = TensorSpec(name="visual_mask", dtype="int64", dims=("batch", "regions"))
    inputs = {"encoder": (visual, mask), "step": step_inputs(config.decoder, (LEVELS,))}
    return inputs | ({"features": (image_axes(config.grid),)} if config.grid else {})


def shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that only this family has. KeyError for a tensor that it must have."""
    return {"slots": state["encoder.layers.0.mhatt.attention.m_k"].shape[1]}


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


RECIPE = M2Recipe()
