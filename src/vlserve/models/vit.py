"""Vision transformer, with the parameter names of timm's.

Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv:2010.11929).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.attention import AttentionMap, merge_heads, split_heads
from vlserve.models.keys import count_layers


class VitConfig(BaseModel):
    """Sizes of a vision transformer; ``patch`` in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    patch: int = Field(default=16, ge=1)
    layer_norm_eps: float = 1e-6


def vit_sizes(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the fields of VitConfig that a checkpoint's tensors show: all but heads and eps."""
    hidden, _, patch, _ = state[f"{prefix}patch_embed.proj.weight"].shape
    return {
        "hidden": hidden,
        "layers": count_layers(state, f"{prefix}blocks."),
        "intermediate": state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0],
        "patch": patch,
    }


class Attention(nn.Module):
    """Self-attention of the patches."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.attention_map = AttentionMap()
        self.proj = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        output: Tensor = self.proj(merge_heads(self.attention_map(query, key) @ value))
        return output


class Mlp(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden, config.intermediate)
        self.fc2 = nn.Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class PatchEmbed(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden, config.patch, config.patch)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, patches, hidden), row by row."""
        patches: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return patches


class VisionTransformer(nn.Module):
    """(batch, 3, height, width) -> (batch, 1 + patches, hidden), the [CLS] token first."""

    def __init__(self, config: VitConfig, height: int, width: int) -> None:
        super().__init__()
        rows, columns = patch_grid(config.patch, height, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, config.hidden))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, config.layer_norm_eps)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def layers(self) -> Sequence[Block]:
        return cast("Sequence[Block]", self.blocks)

    def forward(self, image: Tensor) -> Tensor:
        return self.finish(self.begin(image, 0), 0)

    def begin(self, image: Tensor, last: int) -> Tensor:
        """Return an image's tokens after the blocks before ``last``, (batch, 1 + patches,
        hidden)."""
        patches = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        x = x + self.pos_embed
        for block in self.layers[:last]:
            x = block(x)
        return x

    def finish(self, x: Tensor, first: int) -> Tensor:
        """Return tokens through the blocks from ``first`` on, normed."""
        for block in self.layers[first:]:
            x = block(x)
        states: Tensor = self.norm(x)
        return states


def patch_grid(patch: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of patches in an image."""
    return height // patch, width // patch


def interpolate_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resize position embeddings (1, 1 + n * n, hidden) of a square grid to (1, 1 + rows * columns,
    hidden), bicubic; [CLS] keeps its own. The same tensor where the grid is the same."""
    side = int((positions.shape[1] - 1) ** 0.5)
    if (side, side) == (rows, columns) or positions.shape[1] != 1 + side * side:
        return positions
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
