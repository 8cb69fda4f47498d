"""Losses of one head's logits: tag, entail, reason, match, and which region is meant."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IOU_OF_A_HIT = 0.5
"""A region is right where it overlaps the wanted box by more."""


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """(batch, classes) logits, (batch,) classes -> mean loss; ``weights`` (classes,)."""
    return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)


def distilled_cross_entropy(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, alpha: float | Tensor
) -> Tensor:
    """Cross-entropy, of which a share ``alpha`` goes to the teacher's distribution (ALBEF's NLVR
    and VE with ``distill``). (batch, classes) logits of both, (batch,) classes."""
    soft = teacher_logits.detach().softmax(dim=1)
    distillation = -(F.log_softmax(logits, dim=1) * soft).sum(dim=1).mean()
    return (1 - alpha) * F.cross_entropy(logits, targets) + alpha * distillation


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Cross-entropy in which a sure and right item weighs (1 - p)^gamma: Lin et al., Focal Loss
    (arXiv:1708.02002). (batch, classes) logits, (batch,) classes; ``gamma`` 0 is cross-entropy."""
    log_probability = F.log_softmax(logits, dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return -((1 - log_probability.exp()) ** gamma * log_probability).mean()


def binary_focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """The same of labels that each have a sigmoid: (batch, labels) logits, and 0 or 1."""
    log_probability = -F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return -((1 - log_probability.exp()) ** gamma * log_probability).mean()


def region_targets(overlaps: Tensor) -> Tensor:
    """Overlaps (IoU) of each region with the wanted box, (batch, regions) -> what each region's
    score is to be: its overlap where that is a hit, else 0, as vilbert-multi-task trains it."""
    return torch.where(overlaps > IOU_OF_A_HIT, overlaps, torch.zeros_like(overlaps))


def region_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each region, summed over an image's and averaged over images.
    scores, targets and mask (batch, regions); padding counts for nothing."""
    each = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (each * mask).sum(dim=1).mean()


def share_cross_attention(network: Any) -> None:
    """Make the two layers that look at the two images of a pair share keys and values, as ALBEF
    trains NLVR (models/xbert.py, ``share_cross_attention``): checkpoints hold them twice."""
    for first, second in _pairs_of_layers(network):
        second.crossattention.self.key = first.crossattention.self.key
        second.crossattention.self.value = first.crossattention.self.value


def shares_cross_attention(network: Any) -> bool:
    """Whether a network's layers have such pairs of equal keys and values."""
    pairs = _pairs_of_layers(network)
    return bool(pairs) and all(
        torch.equal(first.crossattention.self.key.weight, second.crossattention.self.key.weight)
        and torch.equal(
            first.crossattention.self.value.weight, second.crossattention.self.value.weight
        )
        for first, second in pairs
    )


def _pairs_of_layers(network: Any) -> list[tuple[Any, Any]]:
    """Layers with cross-attention, two by two; none where their number is odd, or of a network
    that is not ALBEF's."""
    if not hasattr(network, "text_encoder"):
        return []
    layers = network.text_encoder.layers[network.text_encoder.first_cross_layer :]
    return [] if len(layers) % 2 else list(zip(layers[::2], layers[1::2], strict=True))
