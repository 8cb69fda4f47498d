"""Matching on hard negatives: what looks alike is drawn to be told apart."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.training.objectives.encoders import PairEncoders, Texts


@dataclass(frozen=True)
class Negatives:
    """``images``: the place of a wrong image for each text; ``texts``: of a wrong text for each
    image; both (batch,)."""

    images: Tensor
    texts: Tensor


Draw = Callable[[Tensor, Tensor], Negatives]
"""Weights (texts, images) and (images, texts) -> what is drawn by them."""


def negative_weights(
    similarity: Tensor, same: Tensor, *, before: float = 0.0, after: float = 0.0
) -> Tensor:
    """Similarities (batch, batch) of rows to columns -> how likely each column is drawn as the
    row's negative; 0 where both are ``same``. ``before`` and ``after``: what an original adds to
    keep weights above 0, ahead of the softmax or behind it."""
    weights = F.softmax(similarity.detach() + before, dim=1) + after
    return weights.masked_fill(same, 0.0)


def draw_by_weight(of_texts: Tensor, of_images: Tensor) -> Negatives:
    """One negative for each row. A row without any (all the batch is of one image) gets a
    neighbour, so that training goes on."""
    return Negatives(_draw(of_texts), _draw(of_images))


def _draw(weights: Tensor) -> Tensor:
    nothing = weights.sum(dim=1, keepdim=True) == 0
    neighbour = torch.roll(torch.eye(*weights.shape, device=weights.device), 1, dims=1)
    return torch.multinomial(torch.where(nothing, neighbour, weights), 1).squeeze(1)


def matching_loss(
    encoders: PairEncoders,
    image_states: Tensor,
    texts: Texts,
    negatives: Negatives,
    pool: tuple[Tensor, Texts] | None = None,
) -> Tensor:
    """Cross-entropy of matching over the pairs, each text with its wrong image, and each image with
    its wrong text. image_states (batch, patches, hidden). ``pool``: what negatives are places in,
    where that is more than the batch."""
    batch = len(image_states)
    right = encoders.match_logits(image_states, texts)
    pool_images, pool_texts = pool or (image_states, texts)
    images = torch.cat([pool_images[negatives.images], image_states])
    wrong = encoders.match_logits(images, texts.joined(pool_texts.rows(negatives.texts)))
    logits = torch.cat([right, wrong])
    target = torch.zeros(3 * batch, dtype=torch.int64, device=logits.device)
    target[:batch] = 1
    return F.cross_entropy(logits, target)
