"""S2-Transformer: captions from the cells of a grid.

    visual (batch, cells, features)
      SP -> pseudo regions (batch, clusters, features): cells softly assigned to clusters
      both -> the same encoder -> memory (batch, cells + clusters, hidden)
    a decoder reads the memory and writes word by word

Zeng et al., S2 Transformer for Image Captioning (IJCAI 2022), github.com/zchoi/S2-Transformer.
Which cells are padding is taken from the features, whose row is all zero. (The original also takes
for padding what a LayerNorm happens to sum to exactly 0.) Position embeddings are those of the
checkpoint: training leaves them random, and they are no sinusoids.
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
from vlserve.models.attention import mask_bias
from vlserve.models.captioning import (
    CaptionDecoder,
    DecoderLayer,
    FeedForward,
    LayerSizes,
    MultiHeadAttention,
)
from vlserve.runtime.manifest import TensorSpec
from vlserve.training.finetune.plan import CaptionerPlan

FAMILY = "s2"
ATOL = 1e-4
"""Full-size logits are of the order of 10."""
PARTS = ("encoder.", "decoder.", "SP.")
IGNORED = (*BUFFERS, r"word_emb\.weight", r"pos_emb\.weight")
"""Keys that are not needed; the last two stand in the checkpoint, but the original never reads
them. (Those of the decoder are called decoder.word_emb and decoder.pos_emb.)"""
SCALE = 0.2
"""Of what SR adds."""


class Config(CaptionerConfig):
    """See CaptionerConfig."""

    family: Literal["s2"] = "s2"
    cells: int = Field(default=49, ge=1)
    """Rows of the visual features."""
    clusters: int = Field(ge=1)

    @model_validator(mode="after")
    def _grid_fits(self) -> Self:
        if self.grid and self.grid.cells != self.cells:
            raise ValueError(f"the grid has {self.grid.cells} cells, the network {self.cells}")
        return self


class PseudoRegions(nn.Module):
    """Cells -> clusters: what the cells of each differ from its centroid."""

    def __init__(self, clusters: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, clusters, 1)
        self.centroids = nn.Parameter(torch.rand(clusters, features))

    def forward(self, visual: Tensor) -> Tensor:
        """(batch, cells, features) -> (batch, clusters, features), all of them one unit vector."""
        x = F.normalize(visual, dim=2)
        share = torch.softmax(F.linear(x, self.conv.weight.flatten(1), self.conv.bias), dim=2)
        share = share.transpose(1, 2)  # (batch, clusters, cells)
        difference = share @ x - share.sum(dim=2, keepdim=True) * self.centroids
        regions = F.normalize(difference, dim=2)
        return F.normalize(regions.flatten(1), dim=1).reshape(regions.shape)


class EncoderLayer(nn.Module):
    """The residual and a LayerNorm come twice around the attention."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.mhatt = MultiHeadAttention(sizes)
        self.lnorm = nn.LayerNorm(sizes.hidden)
        self.pwff = FeedForward(sizes)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        context = self.mhatt(x, *self.mhatt.keys_values(x), bias)
        encoded: Tensor = self.pwff(self.lnorm(x + context))
        return encoded


class Combination(nn.Module):
    """SR: what all layers say, added to the last one."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        every = sizes.layers * sizes.hidden
        self.MLP = nn.Sequential(
            nn.Linear(every, every), nn.LeakyReLU(), nn.Linear(every, sizes.hidden), nn.LeakyReLU()
        )

    def forward(self, layers: list[Tensor]) -> Tensor:
        output: Tensor = layers[-1] + SCALE * self.MLP(torch.cat(layers, dim=-1))
        return output


class Encoder(nn.Module):
    def __init__(self, sizes: LayerSizes, features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))
        self.SR = Combination(sizes)
        self.fc = nn.Linear(features, sizes.hidden)
        self.layer_norm = nn.LayerNorm(sizes.hidden)

    def forward(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, n, features) -> states (batch, n, hidden), and 1 for what is no padding
        (batch, n)."""
        mask = (visual.abs().amax(dim=2) > 0).to(torch.int64)
        x = self.layer_norm(F.relu(self.fc(visual))) * mask.unsqueeze(2)
        bias, states = mask_bias(mask), []
        for layer in self.layers:
            x = layer(x, bias)
            states.append(x)
        return self.SR(states), mask


class Layer(DecoderLayer):
    """Here too the residual and a LayerNorm come twice around each attention."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__(sizes)
        self.lnorm1 = nn.LayerNorm(sizes.hidden)
        self.lnorm2 = nn.LayerNorm(sizes.hidden)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor, Tensor],
        is_word: Tensor,
    ) -> Tensor:
        x = self.lnorm1(x + self.self_att(x, *past)) * is_word
        x = self.lnorm2(x + self.look(x, *memory)) * is_word
        out: Tensor = self.pwff(x) * is_word
        return out


class Captioner(nn.Module):
    """Parameter names are those of the original's checkpoints."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.decoder
        self.encoder = Encoder(config.encoder, config.features)
        self.SP = PseudoRegions(config.clusters, config.features)
        layers = [Layer(sizes) for _ in range(sizes.layers)]
        self.decoder = CaptionDecoder(
            layers, len(config.words), config.positions, sizes.hidden, config.pad_id
        )
        if config.grid:
            self.grid = GridExtractor(config.grid.resnet)

    def encode(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, cells, features) -> states (batch, cells + clusters, hidden), mask."""
        cells, cells_mask = self.encoder(visual)
        regions, regions_mask = self.encoder(self.SP(visual))
        return torch.cat([cells, regions], dim=1), torch.cat([cells_mask, regions_mask], dim=1)


class EncoderGraph(nn.Module):
    """Visual features -> what the decoder reads of them."""

    def __init__(self, network: Captioner) -> None:
        super().__init__()
        self.network = network

    def forward(self, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, mask = self.network.encode(visual)
        return *self.network.decoder.memory(states), mask


class S2Recipe:
    """See vlserve.exporter.recipe.Recipe."""

    spec = Spec(
        family=FAMILY,
        tasks=("caption",),
        atol=ATOL,
        reads=("S2 Transformer's .pth (zchoi/S2-Transformer)",),
        golden=(
            "s2",
            "keys/s2_transformer",
        ),
    )

    finetuning = CaptionerPlan(masked=False)

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
        return parts.served(settings, settings.cells, assets)

    def graphs(self, network: nn.Module, config: Mapping[str, Any]) -> dict[str, GraphPlan]:
        assert isinstance(network, Captioner)
        settings = parse(config)
        sizes, inputs = settings.decoder, graph_inputs(settings)
        memory = memory_tensors(sizes, settings.cells + settings.clusters)
        plans = {
            "encoder": GraphPlan(EncoderGraph(network), inputs["encoder"], memory),
            "step": step_plan(network.decoder, sizes),
        }
        if settings.grid:
            plans["features"] = features_plan(network.grid, settings.grid)
        return plans

    def example(
        self, graph: str, config: Mapping[str, Any], sizes: Mapping[str, int], seed: int
    ) -> dict[str, Tensor]:
        settings = parse(config)
        inputs = example_inputs(graph_inputs(settings)[graph], sizes, seed, len(settings.words))
        if graph == "encoder":
            inputs["visual"][0, -1] = 0  # even a batch of one holds padding
        return inputs


def graph_inputs(config: Config) -> dict[str, tuple[TensorSpec, ...]]:
    visual = TensorSpec(
        name="visual", dtype="float32", dims=("batch", config.cells, config.features)
    )
    inputs = {"encoder": (visual,), "step": step_inputs(config.decoder)}
    return inputs | ({"features": (image_axes(config.grid),)} if config.grid else {})


def shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that only this family has. KeyError for a tensor that it must have."""
    return {"clusters": state["SP.centroids"].shape[0]}


def parse(config: Mapping[str, Any]) -> Config:
    return parse_config(Config, config, FAMILY)


RECIPE = S2Recipe()
