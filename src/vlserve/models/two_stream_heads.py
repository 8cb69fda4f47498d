"""What surrounds a two-stream encoder: embeddings of tokens and regions, poolers, heads.

Parameter names as in github.com/facebookresearch/vilbert-multi-task and
github.com/jiasenlu/vilbert_beta, whose classifiers differ.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-12
"""Of every LayerNorm, and in no config."""
BOX = 5
"""x1, y1, x2, y2 as fractions of width and height, fraction of the area."""
CLASSIFIERS = {"vil_prediction": 1, "vil_prediction_gqa": 1, "vil_binary_prediction": 2}
"""Heads of two layers, and how many pooled vectors each reads."""
SCALED_ROWS = "main.3.weight_v"
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "vil_prediction": ("logit_fc.3.weight", SCALED_ROWS),
    "vil_prediction_gqa": ("logit_fc.3.weight",),
    "vil_binary_prediction": ("logit_fc.3.weight",),
    "vil_logit": ("weight",),
    "vil_tri_prediction": ("weight",),
    "vision_logit": ("weight",),
    "linguisic_logit": ("weight",),
}
"""Every head beside pretraining's, and its tensor with a row an output: one of them."""


class TokenEmbeddings(nn.Module):
    """Words by id; ids from ``words`` on are task tokens, which have no position and no type and
    stand second, after [CLS]. ``task_tokens`` 0: there are none."""

    def __init__(
        self, words: int, positions: int, token_types: int, task_tokens: int, hidden: int
    ) -> None:
        super().__init__()
        self.words = words
        self.word_embeddings = nn.Embedding(words, hidden)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.token_type_embeddings = nn.Embedding(token_types, hidden)
        self.task_embeddings = nn.Embedding(task_tokens, hidden) if task_tokens else None
        self.LayerNorm = nn.LayerNorm(hidden, EPS)

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        """ids and types (batch, text) -> (batch, text, hidden). Types are 0 unless given."""
        position = torch.arange(ids.shape[1], device=ids.device)
        types = torch.zeros_like(ids) if types is None else types
        if self.task_embeddings is None:
            x = self.word_embeddings(ids)
            places = self.position_embeddings(position) + self.token_type_embeddings(types)
        else:
            word = self.word_embeddings(ids.clamp(max=self.words - 1))
            task = self.task_embeddings((ids - self.words).clamp(min=0))
            x = torch.where((ids >= self.words).unsqueeze(-1), task, word)
            after_task = (position >= 1).long()
            places = self.position_embeddings(position - after_task)
            places = places + self.token_type_embeddings(types)
            places = places * (position != 1).to(places.dtype).unsqueeze(-1)
        embedded: Tensor = self.LayerNorm(x + places)
        return embedded


class RegionEmbeddings(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.image_embeddings = nn.Linear(dim, hidden)
        self.image_location_embeddings = nn.Linear(BOX, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, EPS)

    def forward(self, visual: Tensor, boxes: Tensor) -> Tensor:
        """visual (batch, regions, dim), boxes (batch, regions, 5) -> (batch, regions, hidden)."""
        features = self.image_embeddings(visual) + self.image_location_embeddings(boxes)
        embedded: Tensor = self.LayerNorm(features)
        return embedded


class Pooler(nn.Module):
    def __init__(self, hidden: int, joint: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, joint)

    def forward(self, states: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> (batch, joint), of the first token."""
        return F.relu(self.dense(states[:, 0]))


class Transform(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, EPS)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(F.gelu(self.dense(states)))
        return output


class WordScores(nn.Module):
    """Which word was masked; checkpoints hold the word embeddings again as the decoder."""

    def __init__(self, hidden: int, words: int) -> None:
        super().__init__()
        self.transform = Transform(hidden)
        self.decoder = nn.Linear(hidden, words, bias=False)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.transform(states)) + self.bias
        return scores


class RegionScores(nn.Module):
    """Which object, or which feature, was masked."""

    def __init__(self, hidden: int, targets: int) -> None:
        super().__init__()
        self.transform = Transform(hidden)
        self.decoder = nn.Linear(hidden, targets)

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.transform(states))
        return scores


class PretrainingHeads(nn.Module):
    """``bi_seq_relationship``: logits of belonging together and of not."""

    def __init__(self, text: int, words: int, visual: int, targets: int, joint: int) -> None:
        super().__init__()
        self.predictions = WordScores(text, words)
        self.bi_seq_relationship = nn.Linear(joint, 2)
        self.imagePredictions = RegionScores(visual, targets)


class ScaledLinear(nn.Module):
    """A linear layer whose weight is a direction times a length (weight norm over all of it)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(()))
        self.weight_v = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm()), self.bias)

    def plain(self) -> nn.Linear:
        """Return the layer with its weight multiplied out, for export."""
        linear = nn.Linear(self.weight_v.shape[1], self.weight_v.shape[0])
        with torch.no_grad():
            linear.weight.copy_(self.weight_v * (self.weight_g / self.weight_v.norm()))
            linear.bias.copy_(self.bias)
        return linear.eval().requires_grad_(False)


class Classifier(nn.Module):
    """vilbert-multi-task's: two linear layers, GELU and LayerNorm between."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.logit_fc = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden, EPS),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logit_fc(x)
        return logits


class ScaledClassifier(nn.Module):
    """vilbert_beta's: two weight-normed layers, ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        first, last = ScaledLinear(inputs, hidden), ScaledLinear(hidden, outputs)
        self.main = nn.Sequential(first, nn.ReLU(), nn.Identity(), last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.main(x)
        return logits

    def plain(self) -> nn.Sequential:
        """Return the head with its weights multiplied out, for export."""
        layers = (
            layer.plain() if isinstance(layer, ScaledLinear) else layer for layer in self.main
        )
        return nn.Sequential(*layers)


Fusion = Literal["mul", "sum"]


def fuse(text: Tensor, visual: Tensor, how: Fusion) -> Tensor:
    """Return both pooled vectors (batch, joint) as one."""
    return text * visual if how == "mul" else text + visual


def head_outputs(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many outputs each head has that a checkpoint holds."""
    return {
        name: state[f"{name}.{rows}"].shape[0]
        for name, keys in OUTPUTS.items()
        for rows in keys
        if f"{name}.{rows}" in state
    }


def make_head(
    name: str, outputs: int, text: int, visual: int, joint: int, scaled: bool
) -> nn.Module:
    """Make a head of OUTPUTS; ``text``, ``visual`` and ``joint`` are the widths of what heads
    read."""
    if name in CLASSIFIERS:
        kind = ScaledClassifier if scaled else Classifier
        return kind(joint * CLASSIFIERS[name], joint * 2, outputs)
    inputs = {"vision_logit": visual, "linguisic_logit": text}
    return nn.Linear(inputs.get(name, joint), outputs)


def checkpoint_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a checkpoint's tensors show beside the encoder: fields of the recipe's Config,
    and ``words``. KeyError for a tensor that there must be."""
    text, regions = "bert.embeddings.", "bert.v_embeddings."
    task_tokens = state.get(f"{text}task_embeddings.weight")
    return {
        "words": state[f"{text}word_embeddings.weight"].shape[0],
        "positions": state[f"{text}position_embeddings.weight"].shape[0],
        "token_types": state[f"{text}token_type_embeddings.weight"].shape[0],
        "task_tokens": 0 if task_tokens is None else task_tokens.shape[0],
        "region_dim": state[f"{regions}image_embeddings.weight"].shape[1],
        "region_targets": state["cls.imagePredictions.decoder.weight"].shape[0],
        "heads": head_outputs(state),
        "scaled_classifier": f"vil_prediction.{SCALED_ROWS}" in state,
    }
