"""Captions by cross-entropy of the next word."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.training.objectives.masking import IGNORED

Memory = tuple[Tensor, Tensor, Tensor]
"""Keys, values and mask of what a decoder reads of an image."""


def next_words(log_probs: Tensor, captions: Tensor, pad_id: int) -> Tensor:
    """Mean negative log-probability of each next word that is no padding: S2's and M2's first
    stage. log_probs (batch, tokens, words) behind each of captions (batch, tokens)."""
    return F.nll_loss(
        log_probs[:, :-1].flatten(0, 1), captions[:, 1:].flatten(), ignore_index=pad_id
    )


def caption_log_probs(decoder: Any, captions: Tensor, memory: Memory) -> Tensor:
    """Log-probabilities (batch, tokens, words) of what follows each word, of a decoder of
    vlserve.models.captioning."""
    states, _, _ = decoder(captions.unsqueeze(1), memory)
    return F.log_softmax(decoder.logits(states[:, 0]), dim=-1)


def prompted_loss(
    logits: Tensor, ids: Tensor, mask: Tensor, prompt: int, smoothing: float
) -> Tensor:
    """Mean cross-entropy of the next word, behind a prompt that is not scored: BLIP's, with
    ``smoothing`` 0.1. logits (batch, tokens, words), ids and mask (batch, tokens); ``prompt``: its
    tokens, the first one included."""
    target = ids.masked_fill(mask == 0, IGNORED)
    target = torch.cat([torch.full_like(ids[:, :prompt], IGNORED), target[:, prompt:]], dim=1)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        target[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
