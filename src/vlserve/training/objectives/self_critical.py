"""Captions by reward: self-critical sequence training over the beams of a search.

Rennie et al., Self-critical Sequence Training (arXiv:1612.00563), with the mean reward of an
image's beams as the baseline, as M2 (arXiv:1912.08226) and S2 train: their second stage.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.training.objectives.caption import Memory


def word_log_probs(
    decoder: Any, start_id: int, texts: Tensor, mask: Tensor, memory: Memory
) -> Tensor:
    """Log-probability of each word of texts that a beam search has written, with its gradient, in
    one pass: texts (batch, beams, steps) without the start; ``mask`` (batch, beams, steps): 1 up
    to and with the end. After that it is 0, as the search counts it."""
    start = torch.full_like(texts[:, :, :1], start_id)
    states, _, _ = decoder(torch.cat([start, texts[:, :, :-1]], dim=2), memory)
    log_probs = F.log_softmax(decoder.logits(states), dim=-1)
    own = log_probs.gather(3, texts.unsqueeze(3)).squeeze(3)
    return torch.where(mask > 0, own, torch.zeros_like(own))


def self_critical(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """log_probs (batch, beams, steps), rewards (batch, beams) -> the loss: each text's mean
    log-probability over all steps, weighted by how far its reward is above its image's mean."""
    advantage = rewards - rewards.mean(dim=-1, keepdim=True)
    return (-log_probs.mean(dim=-1) * advantage).mean()
