"""Attention between text and visual tokens, and over both, with fewer keys than tokens.

Co-attention is that of Lu et al., ViLBERT (arXiv:1908.02265): each stream's queries meet the other
stream's keys and values. Attention costs queries x keys, so that a long visual stream is dear where
it meets itself. Fewer keys, one a chunk of neighbouring tokens, cost as many times less:

    full     every token is a key
    chunk    the mean of each chunk's visible tokens is a key (and, projected, a value)
    sparse   the first token of each chunk is; the others are left out, not zeroed

A mean of projected states is the projection of their mean, so states are reduced before they are
projected. Every token keeps its query: outputs are as long as inputs.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vlserve.models.attention import mask_bias
from vlserve.models.bert import Attention, Layer, LayersConfig


class KeysConfig(BaseModel):
    """Which keys attention has. ``chunk``: tokens of a chunk; 1 is the same as full."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["full", "chunk", "sparse"] = "full"
    chunk: int = Field(default=4, ge=1, le=64)
    text: bool = False
    """Whether text has fewer keys too. It is short: there is nothing to gain, and words to lose."""


def mean_of_chunks(states: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean of the visible tokens of each chunk, and 1 where it has any: (batch, tokens, hidden),
    (batch, tokens) -> (batch, chunks, hidden), (batch, chunks). The last chunk may be shorter."""
    tokens = states.shape[1]
    weights = mask.to(states.dtype).unsqueeze(2)  # (batch, tokens, 1)
    total, count = (
        _sum_of_chunks(states * weights, size, tokens),
        _sum_of_chunks(weights, size, tokens),
    )
    return total / count.clamp(min=1), (count.squeeze(2) > 0).to(mask.dtype)


def _sum_of_chunks(x: Tensor, size: int, tokens: int) -> Tensor:
    """(batch, tokens, width) -> (batch, chunks, width): the chunks' first tokens, plus their second
    ones, and so on. Slices alone, so that an export keeps any number of tokens."""
    padded = torch.cat([x, x.new_zeros(x.shape[0], size - 1, x.shape[2])], dim=1)
    total = padded[:, 0:tokens:size]
    for offset in range(1, size):
        total = total + padded[:, offset : offset + tokens : size]
    return total


def first_of_chunks(states: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(batch, tokens, hidden), (batch, tokens) -> (batch, chunks, hidden), (batch, chunks).
    Visible tokens must come first, as padding is at the end: else a chunk may go unseen."""
    return states[:, ::size], mask[:, ::size]


class Keys(nn.Module):
    """What is left of two streams to attend to."""

    def __init__(self, config: KeysConfig) -> None:
        super().__init__()
        self.config = config

    def of_text(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, text, hidden), (batch, text) -> keys and their mask."""
        return self.of_visual(states, mask) if self.config.text else (states, mask)

    def of_visual(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, regions, hidden), (batch, regions) -> keys and their mask."""
        if self.config.variant == "chunk":
            return mean_of_chunks(states, mask, self.config.chunk)
        if self.config.variant == "sparse":
            return first_of_chunks(states, mask, self.config.chunk)
        return states, mask


class CoAttention(nn.Module):
    """Text attends to visual tokens and they to text, both once and at the same time; each keeps
    its length. ``text`` has the queries of text, and the keys and values of what text looks at."""

    def __init__(self, config: LayersConfig, keys: KeysConfig) -> None:
        super().__init__()
        self.text = Attention(config, config.hidden)
        self.visual = Attention(config, config.hidden)
        self.keys = Keys(keys)

    def forward(
        self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """text (batch, text, hidden), visual (batch, regions, hidden), masks without the last axis
        -> both streams, of the same shapes."""
        regions, region_mask = self.keys.of_visual(visual, visual_mask)
        words, word_mask = self.keys.of_text(text, text_mask)
        return (
            self.text(text, *self.text.keys_values(regions), mask_bias(region_mask)),
            self.visual(visual, *self.visual.keys_values(words), mask_bias(word_mask)),
        )


class JointEncoder(nn.Module):
    """BERT's layers over text and visual tokens in one sequence, text first. No key is of both: the
    two streams are chunked each on its own."""

    def __init__(self, config: LayersConfig, keys: KeysConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.keys = Keys(keys)

    @property
    def layers(self) -> Sequence[Layer]:
        return cast("Sequence[Layer]", self.layer)

    def forward(
        self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> Tensor:
        """text (batch, text, hidden), visual (batch, regions, hidden), masks without the last axis
        -> (batch, text + regions, hidden)."""
        x = torch.cat([text, visual], dim=1)
        for layer in self.layers:
            x = layer.feed_forward(self.attend(layer.attention, x, text_mask, visual_mask))
        return x

    def attend(
        self, attention: Attention, x: Tensor, text_mask: Tensor, visual_mask: Tensor
    ) -> Tensor:
        """One attention over both streams, x (batch, text + regions, hidden) -> the same."""
        keys, bias = self.reduce(x, text_mask, visual_mask)
        output: Tensor = attention(x, *attention.keys_values(keys), bias)
        return output

    def reduce(self, x: Tensor, text_mask: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what x (batch, text + regions, hidden) attends to, (batch, keys, hidden), and what
        to add to its scores, (batch, 1, 1, keys)."""
        length = text_mask.shape[1]
        words, word_mask = self.keys.of_text(x[:, :length], text_mask)
        regions, region_mask = self.keys.of_visual(x[:, length:], visual_mask)
        bias = mask_bias(torch.cat([word_mask, region_mask], dim=1))
        return torch.cat([words, regions], dim=1), bias
