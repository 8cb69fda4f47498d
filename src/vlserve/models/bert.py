"""BERT with cross-attention in some of its layers, with the parameter names of its checkpoints.

Devlin et al., BERT (arXiv:1810.04805). What the cross-attention looks at is called memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.attention import AttentionMap, mask_bias, merge_heads, split_heads
from vlserve.models.keys import count_layers


class LayersConfig(BaseModel):
    """Sizes of BERT's layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    layer_norm_eps: float = 1e-12

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is no multiple of heads {self.heads}")
        return self


class BertConfig(LayersConfig):
    """Sizes of a BERT. ``token_types`` 0: no such embedding. Layers from ``first_cross_layer`` on
    have cross-attention to a memory of width ``memory_hidden``."""

    vocabulary: int = Field(ge=1)
    positions: int = Field(ge=1)
    token_types: int = Field(default=0, ge=0)
    first_cross_layer: int = Field(ge=0)
    memory_hidden: int = Field(ge=1)


def bert_sizes(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the fields of BertConfig that a checkpoint's tensors show: all but heads and eps."""
    embeddings, layers = f"{prefix}embeddings.", f"{prefix}encoder.layer."
    count = count_layers(state, layers)
    vocabulary, hidden = state[f"{embeddings}word_embeddings.weight"].shape
    cross = [f"{layers}{index}.crossattention.self.key.weight" for index in range(count)]
    cross_layers = [index for index, name in enumerate(cross) if name in state]
    token_types = state.get(f"{embeddings}token_type_embeddings.weight")
    return {
        "vocabulary": vocabulary,
        "positions": state[f"{embeddings}position_embeddings.weight"].shape[0],
        "token_types": 0 if token_types is None else token_types.shape[0],
        "hidden": hidden,
        "layers": count,
        "intermediate": state[f"{layers}0.intermediate.dense.weight"].shape[0],
        "first_cross_layer": min(cross_layers, default=count),
        "memory_hidden": state[cross[cross_layers[0]]].shape[1] if cross_layers else hidden,
    }


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = (
            nn.Embedding(config.token_types, config.hidden) if config.token_types else None
        )
        self.LayerNorm = nn.LayerNorm(config.hidden, config.layer_norm_eps)

    def forward(self, ids: Tensor, first_position: int = 0) -> Tensor:
        """(…, tokens) -> (…, tokens, hidden); every token is of type 0."""
        positions = torch.arange(ids.shape[-1], device=ids.device) + first_position
        x = self.word_embeddings(ids) + self.position_embeddings(positions)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        embedded: Tensor = self.LayerNorm(x)
        return embedded


class Projections(nn.Module):
    def __init__(self, hidden: int, memory_hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(memory_hidden, hidden)
        self.value = nn.Linear(memory_hidden, hidden)
        self.attention_map = AttentionMap()


class AddNorm(nn.Module):
    """LayerNorm(dense(x) + residual)."""

    def __init__(self, inner: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(self.dense(x) + residual)
        return output


class Attention(nn.Module):
    """Attention to keys and values of the text itself, or of a memory."""

    def __init__(self, config: LayersConfig, memory_hidden: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.self = Projections(config.hidden, memory_hidden)
        self.output = AddNorm(config.hidden, config.hidden, config.layer_norm_eps)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(…, tokens, width) -> key and value, each (…, heads, tokens, size)."""
        key, value = self.self.key(states), self.self.value(states)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (…, tokens, hidden) -> the same shape."""
        query = split_heads(self.self.query(x), self.heads)
        context = merge_heads(self.self.attention_map(query, key, bias) @ value)
        output: Tensor = self.output(context, x)
        return output


class Intermediate(nn.Module):
    def __init__(self, config: LayersConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention, cross-attention if there is a memory, MLP. ``memory_hidden``: the memory's
    width; None: the layer has no cross-attention."""

    def __init__(self, config: LayersConfig, memory_hidden: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden)
        if memory_hidden is not None:
            self.crossattention = Attention(config, memory_hidden)
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config.intermediate, config.hidden, config.layer_norm_eps)

    def feed_forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(self.intermediate(x), x)
        return output

    def forward(self, x: Tensor, bias: Tensor | None, memory: Tensor | None) -> Tensor:
        """Compute x (batch, tokens, hidden) after this layer; memory (batch, memory tokens,
        memory_hidden), all visible."""
        x = self.attention(x, *self.attention.keys_values(x), bias)
        if memory is not None:
            x = self.crossattention(x, *self.crossattention.keys_values(memory))
        return self.feed_forward(x)


class Layers(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Layer(config, config.memory_hidden if index >= config.first_cross_layer else None)
            for index in range(config.layers)
        )


class BertEncoder(nn.Module):
    """Token ids -> states. Memory is a sequence of tensors, which the layers with cross-attention
    look at in turn; most models have one."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.first_cross_layer = config.first_cross_layer
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)

    @property
    def layers(self) -> Sequence[Layer]:
        return cast("Sequence[Layer]", self.encoder.layer)

    def forward(self, ids: Tensor, mask: Tensor, memories: Sequence[Tensor] = ()) -> Tensor:
        """ids and mask (batch, text), each memory (batch, tokens, memory_hidden) ->
        (batch, text, hidden)."""
        x = self.embeddings(ids)
        return self.run(x, mask, memories, 0, len(self.layers))

    def run(
        self, x: Tensor, mask: Tensor, memories: Sequence[Tensor], first: int, last: int
    ) -> Tensor:
        """Put states (batch, text, hidden) through the layers from ``first`` to before
        ``last``."""
        bias = mask_bias(mask)
        for index in range(first, last):
            turn = index - self.first_cross_layer
            memory = memories[turn % len(memories)] if memories and turn >= 0 else None
            x = self.layers[index](x, bias, memory)
        return x
