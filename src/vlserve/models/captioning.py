"""A transformer that writes captions word by word, as the Meshed-Memory Transformer does and what
stands on it: post-norm attention, learned positions, one decoder step with a cache.

Cornia et al., Meshed-Memory Transformer (arXiv:1912.08226),
github.com/aimagelab/meshed-memory-transformer, whose parameter names these are. Beams have an axis
of their own, so that those of one image share its memory:

    token_ids, past_ids, new_ids (batch, beams, tokens)
    past_key, past_value, new_key, new_value (batch, beams, layers, heads, tokens, size)
    memory_key, memory_value (batch, layers, [levels,] heads, memory, size)
    memory_mask (batch, memory)

Padding among the words is seen by none; the ids before stand in the cache for that.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.attention import (
    AttentionMap,
    causal_bias,
    mask_bias,
    merge_heads,
    split_heads,
)


class LayerSizes(BaseModel):
    """Of an encoder's or a decoder's layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    key_size: int = Field(ge=1)
    """Of a head's queries and keys."""
    value_size: int = Field(ge=1)
    intermediate: int = Field(ge=1)


class Projections(nn.Module):
    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.fc_q = nn.Linear(sizes.hidden, sizes.heads * sizes.key_size)
        self.fc_k = nn.Linear(sizes.hidden, sizes.heads * sizes.key_size)
        self.fc_v = nn.Linear(sizes.hidden, sizes.heads * sizes.value_size)
        self.fc_o = nn.Linear(sizes.heads * sizes.value_size, sizes.hidden)


class MultiHeadAttention(nn.Module):
    """With the residual and its LayerNorm."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.attention = Projections(sizes)
        self.map = AttentionMap()
        self.layer_norm = nn.LayerNorm(sizes.hidden)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, tokens, hidden) -> two of (…, heads, tokens, size)."""
        key, value = self.attention.fc_k(x), self.attention.fc_v(x)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Queries x (…, tokens, hidden) -> the same shape."""
        query = split_heads(self.attention.fc_q(x), self.heads)
        context = merge_heads(self.map(query, key, bias) @ value)
        output: Tensor = self.layer_norm(x + self.attention.fc_o(context))
        return output


class FeedForward(nn.Module):
    """With the residual and its LayerNorm."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.hidden, sizes.intermediate)
        self.fc2 = nn.Linear(sizes.intermediate, sizes.hidden)
        self.layer_norm = nn.LayerNorm(sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer_norm(x + self.fc2(F.relu(self.fc1(x))))
        return output


class DecoderLayer(nn.Module, ABC):
    """Attention to the words before, attention to the memory, feed forward. A family says in
    ``forward`` how they follow each other."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.self_att = MultiHeadAttention(sizes)
        self.enc_att = MultiHeadAttention(sizes)
        self.pwff = FeedForward(sizes)

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor, Tensor],
        is_word: Tensor,
    ) -> Tensor:
        """Compute x (batch, beams, tokens, hidden) after this layer; past: key and value (batch,
        beams, heads, tokens before and these, size) and bias; memory: key and value (batch,
        [levels,] heads, memory, size) and bias; is_word (batch, beams, tokens, 1) is 0 where x is
        padding."""

    def look(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Return attention of x (batch, beams, tokens, hidden) to the memory: beams are further
        queries of their image, so that its memory is not copied."""
        context: Tensor = self.enc_att(x.flatten(1, 2), key, value, bias)
        return context.reshape(x.shape)


class CaptionDecoder(nn.Module):
    def __init__(
        self, layers: Iterable[DecoderLayer], words: int, positions: int, hidden: int, pad_id: int
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.word_emb = nn.Embedding(words, hidden)
        self.pos_emb = nn.Embedding(positions, hidden)  # the first word is at 1
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(hidden, words, bias=False)

    @property
    def each_layer(self) -> Sequence[DecoderLayer]:
        return cast("Sequence[DecoderLayer]", self.layers)

    def memory(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, [levels,] memory, hidden) -> memory_key and memory_value, once an image."""
        pairs = [layer.enc_att.keys_values(states) for layer in self.each_layer]
        keys, values = zip(*pairs, strict=True)
        return torch.stack(keys, 1), torch.stack(values, 1)

    def forward(
        self,
        token_ids: Tensor,
        memory: tuple[Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """memory: key, value and mask; past: ids, key and value -> states (batch, beams, tokens,
        hidden), which are 0 at padding, new_key, new_value."""
        memory_key, memory_value, memory_mask = memory
        ids = token_ids if past is None else torch.cat([past[0], token_ids], dim=2)
        tokens, length = token_ids.shape[2], ids.shape[2]
        is_word = (token_ids != self.pad_id).to(torch.float32).unsqueeze(3)
        bias = causal_bias(tokens, length, ids.device) + mask_bias(ids != self.pad_id)
        memory_bias = mask_bias(memory_mask)
        position = torch.arange(tokens, device=ids.device) + (length - tokens + 1)
        x = self.word_emb(token_ids) + self.pos_emb(position)
        keys, values = [], []
        for index, layer in enumerate(self.each_layer):
            key, value = layer.self_att.keys_values(x)  # (batch, beams, heads, tokens, size)
            keys.append(key)
            values.append(value)
            if past is not None:
                key = torch.cat([past[1][:, :, index], key], dim=-2)
                value = torch.cat([past[2][:, :, index], value], dim=-2)
            of_layer = (memory_key[:, index], memory_value[:, index], memory_bias)
            x = layer(x, (key, value, bias), of_layer, is_word)
        return x, torch.stack(keys, 2), torch.stack(values, 2)

    def logits(self, states: Tensor) -> Tensor:
        """(…, hidden) -> (…, vocabulary)."""
        scores: Tensor = self.fc(states)
        return scores


class CaptionStep(nn.Module):
    """The next word's logits (batch, beams, vocabulary), and what the cache grows by."""

    def __init__(self, decoder: CaptionDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        token_ids: Tensor,
        past_ids: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        memory = (memory_key, memory_value, memory_mask)
        past = (past_ids, past_key, past_value)
        states, new_key, new_value = self.decoder(token_ids, memory, past)
        return self.decoder.logits(states[:, :, -1]), token_ids.clone(), new_key, new_value
