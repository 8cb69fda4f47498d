"""Two streams of transformer layers, text and image regions, that look at each other in
connection layers.

    text    layer 0 … ── connection 0 ── layer … ── connection 1 ── …
                             ╳                          ╳
    visual  layer 0 … ── connection 0 ── layer … ── connection 1 ── …

The text's layers before the first connection look at no image, so their states serve every image.
Lu et al., ViLBERT (arXiv:1908.02265); parameter names as in github.com/jiasenlu/vilbert_beta.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from vlserve.models.attention import AttentionMap, mask_bias, merge_heads, split_heads
from vlserve.models.bert import AddNorm, Intermediate, Layer, LayersConfig, Projections
from vlserve.models.keys import count_layers

HEAD_SIZE, JOINT_HEAD_SIZE = 64, 128
"""Of every published checkpoint: the text's, and the visual stream's and the connections'."""
HEADS_AND_PLACES = (
    "num_attention_heads",
    "v_num_attention_heads",
    "bi_num_attention_heads",
    "t_biattention_id",
    "v_biattention_id",
)
"""Fields of ViLBERT's own config.json that no tensor shows."""


class TwoStreamConfig(BaseModel):
    """Connection j comes after as many layers of each stream as place j of its ``*_connections``
    says. ``gated``: the visual layers' attention depends on the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: LayersConfig
    visual: LayersConfig
    joint_hidden: int = Field(ge=1)
    joint_heads: int = Field(ge=1)
    text_connections: tuple[int, ...] = Field(min_length=1)
    visual_connections: tuple[int, ...] = Field(min_length=1)
    gated: bool = False

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.joint_hidden % self.joint_heads:
            raise ValueError(f"{self.joint_hidden} is no multiple of heads {self.joint_heads}")
        if len(self.text_connections) != len(self.visual_connections):
            raise ValueError("both streams have the same connections")
        for places, layers in (
            (self.text_connections, self.text.layers),
            (self.visual_connections, self.visual.layers),
        ):
            if list(places) != sorted(places) or not 0 <= places[0] <= places[-1] <= layers:
                raise ValueError(f"connections must ascend from 0 to {layers} at the most")
        return self


def two_stream_sizes(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """What a checkpoint's tensors show of TwoStreamConfig: all but heads and where connections
    are; ``connections`` is how many. KeyError for a tensor that there must be."""
    sizes: dict[str, Any] = {}
    for stream, layers in (("text", f"{prefix}layer."), ("visual", f"{prefix}v_layer.")):
        sizes[stream] = {
            "hidden": state[f"{layers}0.attention.self.query.weight"].shape[0],
            "layers": count_layers(state, layers),
            "intermediate": state[f"{layers}0.intermediate.dense.weight"].shape[0],
        }
    sizes["joint_hidden"] = state[f"{prefix}c_layer.0.biattention.query1.weight"].shape[0]
    sizes["connections"] = count_layers(state, f"{prefix}c_layer.")
    sizes["gated"] = f"{prefix}v_layer.0.attention.self.dyLinear_q.weight" in state
    return sizes


def encoder_config(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """TwoStreamConfig of the sizes that `two_stream_sizes` found. What they do not show is what
    ``config`` says, or as in published checkpoints: a connection before each of the last layers."""
    text, visual, joint = sizes["text"], sizes["visual"], sizes["joint_hidden"]
    places = {
        stream: range(sizes[stream]["layers"] - sizes["connections"], sizes[stream]["layers"])
        for stream in ("text", "visual")
    }
    default = {
        "num_attention_heads": max(1, text["hidden"] // HEAD_SIZE),
        "v_num_attention_heads": max(1, visual["hidden"] // JOINT_HEAD_SIZE),
        "bi_num_attention_heads": max(1, joint // JOINT_HEAD_SIZE),
        "t_biattention_id": places["text"],
        "v_biattention_id": places["visual"],
    }
    default |= _completed(config.get("encoder"))
    values = {name: config.get(name, default[name]) for name in HEADS_AND_PLACES}
    return {
        "text": text | {"heads": values["num_attention_heads"]},
        "visual": visual | {"heads": values["v_num_attention_heads"]},
        "joint_hidden": joint,
        "joint_heads": values["bi_num_attention_heads"],
        "text_connections": list(values["t_biattention_id"]),
        "visual_connections": list(values["v_biattention_id"]),
        "gated": sizes["gated"],
    }


def _completed(encoder: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a config.json that is complete says of HEADS_AND_PLACES: what this function made."""
    if encoder is None:
        return {}
    return {
        "num_attention_heads": encoder["text"]["heads"],
        "v_num_attention_heads": encoder["visual"]["heads"],
        "bi_num_attention_heads": encoder["joint_heads"],
        "t_biattention_id": encoder["text_connections"],
        "v_biattention_id": encoder["visual_connections"],
    }


class GatedProjections(Projections):
    """Query, key and value, and what of query and key lets through, by the text."""

    def __init__(self, hidden: int, text_hidden: int) -> None:
        super().__init__(hidden, hidden)
        self.dyLinear_q = nn.Linear(text_hidden, hidden)
        self.dyLinear_k = nn.Linear(text_hidden, hidden)

    def gate(self, text: Tensor) -> Tensor:
        """Mean text state (batch, text_hidden) -> factors of query times key, (batch, hidden)."""
        query, key = self.dyLinear_q(text), self.dyLinear_k(text)
        return (1 + torch.sigmoid(query)) * (1 + torch.sigmoid(key))


class VisualLayer(Layer):
    """A layer over regions; ``text_hidden`` None: without a gate."""

    def __init__(self, config: LayersConfig, text_hidden: int | None) -> None:
        super().__init__(config)
        if text_hidden is not None:
            self.attention.self = GatedProjections(config.hidden, text_hidden)

    def attend(self, x: Tensor, bias: Tensor, text: Tensor | None) -> Tensor:
        """x (batch, regions, hidden), the mean text state (batch, text_hidden) -> x's shape."""
        key, value = self.attention.keys_values(x)
        if text is not None:
            # query and key are only ever multiplied, so the key can carry both gates
            gate = cast("GatedProjections", self.attention.self).gate(text)
            key = key * split_heads(gate.unsqueeze(1), self.attention.heads)
        return self.feed_forward(self.attention(x, key, value, bias))


class CoAttention(nn.Module):
    """Each stream attends to the other; 1 is the visual one, 2 the text."""

    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__()
        self.heads = config.joint_heads
        joint, visual, text = config.joint_hidden, config.visual.hidden, config.text.hidden
        self.query1 = nn.Linear(visual, joint)
        self.key1 = nn.Linear(visual, joint)
        self.value1 = nn.Linear(visual, joint)
        self.query2 = nn.Linear(text, joint)
        self.key2 = nn.Linear(text, joint)
        self.value2 = nn.Linear(text, joint)
        self.text_to_visual = AttentionMap()
        self.visual_to_text = AttentionMap()

    def forward(
        self, text: Tensor, text_bias: Tensor, visual: Tensor, visual_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the text's tokens see, (batch, text, joint); what the regions see."""
        query1, key1, value1 = self._split(self.query1, self.key1, self.value1, visual)
        query2, key2, value2 = self._split(self.query2, self.key2, self.value2, text)
        text_context = self.text_to_visual(query2, key1, visual_bias) @ value1
        visual_context = self.visual_to_text(query1, key2, text_bias) @ value2
        return merge_heads(text_context), merge_heads(visual_context)

    def _split(self, query: nn.Module, key: nn.Module, value: nn.Module, x: Tensor) -> list[Tensor]:
        return [split_heads(linear(x), self.heads) for linear in (query, key, value)]


class CoOutput(nn.Module):
    """What each stream saw, added to its own states."""

    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__()
        visual, text = config.visual, config.text
        self.dense1 = nn.Linear(config.joint_hidden, visual.hidden)
        self.LayerNorm1 = nn.LayerNorm(visual.hidden, visual.layer_norm_eps)
        self.dense2 = nn.Linear(config.joint_hidden, text.hidden)
        self.LayerNorm2 = nn.LayerNorm(text.hidden, text.layer_norm_eps)

    def forward(
        self, text: Tensor, text_context: Tensor, visual: Tensor, visual_context: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (
            self.LayerNorm2(self.dense2(text_context) + text),
            self.LayerNorm1(self.dense1(visual_context) + visual),
        )


class Connection(nn.Module):
    """Co-attention, then an MLP in each stream."""

    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__()
        visual, text = config.visual, config.text
        self.biattention = CoAttention(config)
        self.biOutput = CoOutput(config)
        self.v_intermediate = Intermediate(visual)
        self.v_output = AddNorm(visual.intermediate, visual.hidden, visual.layer_norm_eps)
        self.t_intermediate = Intermediate(text)
        self.t_output = AddNorm(text.intermediate, text.hidden, text.layer_norm_eps)

    def forward(
        self, text: Tensor, text_bias: Tensor, visual: Tensor, visual_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States of both streams -> the same shapes."""
        text_context, visual_context = self.biattention(text, text_bias, visual, visual_bias)
        text, visual = self.biOutput(text, text_context, visual, visual_context)
        return (
            self.t_output(self.t_intermediate(text), text),
            self.v_output(self.v_intermediate(visual), visual),
        )


class TwoStreamEncoder(nn.Module):
    def __init__(self, config: TwoStreamConfig) -> None:
        super().__init__()
        self.text_connections = config.text_connections
        self.visual_connections = config.visual_connections
        self.gated = config.gated
        text_hidden = config.text.hidden if config.gated else None
        self.layer = nn.ModuleList(Layer(config.text) for _ in range(config.text.layers))
        self.v_layer = nn.ModuleList(
            VisualLayer(config.visual, text_hidden) for _ in range(config.visual.layers)
        )
        self.c_layer = nn.ModuleList(Connection(config) for _ in config.text_connections)

    def text_alone(self, text: Tensor, mask: Tensor) -> Tensor:
        """Embeddings and mask (batch, text) -> states (batch, text, hidden) that have not seen an
        image: what `join` takes."""
        return self._text(text, mask_bias(mask), 0, self.text_connections[0])

    def join(
        self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States of `text_alone`, embeddings of regions (batch, regions, visual hidden), masks:
        1 where there is something -> the last states of text and regions."""
        text_bias, visual_bias = mask_bias(text_mask), mask_bias(visual_mask)
        text_start, visual_start = self.text_connections[0], 0
        for connection, text_next, visual_next in zip(
            self.c_layer, self.text_connections, self.visual_connections, strict=True
        ):
            text = self._text(text, text_bias, text_start, text_next)
            mean = self._mean(text, text_mask)
            visual = self._visual(visual, visual_bias, mean, visual_start, visual_next)
            text, visual = connection(text, text_bias, visual, visual_bias)
            text_start, visual_start = text_next, visual_next
        mean = self._mean(text, text_mask)
        visual = self._visual(visual, visual_bias, mean, visual_start, len(self.v_layer))
        return self._text(text, text_bias, text_start, len(self.layer)), visual

    def _mean(self, text: Tensor, mask: Tensor) -> Tensor | None:
        """(batch, hidden), of the tokens that are no padding; None where no gate asks for it."""
        if not self.gated:
            return None
        weight = mask.to(text.dtype).unsqueeze(-1)
        return (text * weight).sum(1) / weight.sum(1)

    def _text(self, x: Tensor, bias: Tensor, first: int, last: int) -> Tensor:
        for layer in cast("Sequence[Layer]", self.layer)[first:last]:
            x = layer(x, bias, None)
        return x

    def _visual(
        self, x: Tensor, bias: Tensor, text: Tensor | None, first: int, last: int
    ) -> Tensor:
        for layer in cast("Sequence[VisualLayer]", self.v_layer)[first:last]:
            x = layer.attend(x, bias, text)
        return x
