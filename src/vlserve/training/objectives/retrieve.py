"""Retrieval: image-text contrast against a queue, and matching on hard negatives.

ALBEF (arXiv:2107.07651, models/model_retrieval.py) and BLIP (arXiv:2201.12086,
models/blip_retrieval.py) differ in where negatives' weights come from and whether the temperature
is bounded; `ALBEF` and `BLIP` say how.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.training.distributed import gathered, gathered_with_gradient, size
from vlserve.training.objectives.encoders import (
    PairEncoders,
    Texts,
    image_vector,
    text_vector,
)
from vlserve.training.objectives.hard_negatives import (
    Draw,
    draw_by_weight,
    matching_loss,
    negative_weights,
)
from vlserve.training.objectives.momentum import Queue, follow

TEMPERATURES = (0.001, 0.5)
"""Bounds of a temperature that is learnt."""


@dataclass(frozen=True)
class RetrievalRules:
    """Where the originals differ. ``momentum``: how much of the teacher stays in a step."""

    momentum: float = 0.995
    bounded_temperature: bool = False
    """The temperature is kept within TEMPERATURES."""
    negatives_by_teacher: bool = True
    """Negatives are drawn by similarity to the teacher's vectors, not to the network's own."""
    negatives_of_all_ranks: bool = False
    """Negatives are drawn of what every process sees in a step."""
    before: float = 0.0
    """Added to similarities ahead of the softmax that gives negatives' weights."""
    after: float = 0.0
    """Added to those weights."""


ALBEF = RetrievalRules(before=1e-4)
BLIP = RetrievalRules(
    bounded_temperature=True, negatives_by_teacher=False, negatives_of_all_ranks=True
)


@dataclass(frozen=True)
class Seen:
    """What network and teacher made of a batch. States (batch, …, hidden); vectors (batch, dim);
    ``image_scores`` and ``text_scores`` (batch, batch + queue): the network's vectors against the
    teacher's, those of the batch first, over the temperature."""

    image_states: Tensor
    texts: Texts
    image_vectors: Tensor
    text_vectors: Tensor
    slow_images: Tensor
    slow_texts: Tensor
    image_scores: Tensor
    text_scores: Tensor
    slow_image_states: Tensor


@dataclass(frozen=True)
class Retrieved:
    """Losses by name, and the weights that negatives were drawn by, (batch, batch) each: of images
    for a text, and of texts for an image."""

    losses: dict[str, Tensor]
    image_weights: Tensor
    text_weights: Tensor


def look(
    encoders: PairEncoders,
    teacher: PairEncoders,
    queue: Queue,
    temperature: Tensor,
    batch: Mapping[str, Tensor],
) -> Seen:
    """batch: image (batch, 3, height, width), text_ids and text_mask (batch, text)."""
    network, slow = encoders.network, teacher.network
    image_states: Tensor = network.visual_encoder(batch["image"])
    texts = encoders.texts(batch["text_ids"], batch["text_mask"])
    images, words = image_vector(network, image_states), text_vector(network, texts.states)
    with torch.no_grad():
        slow_states = slow.visual_encoder(batch["image"])
        slow_images = image_vector(slow, slow_states)
        slow_texts = text_vector(slow, teacher.texts(batch["text_ids"], batch["text_mask"]).states)
        every_image = torch.cat([slow_images.T, queue.images], dim=1)
        every_text = torch.cat([slow_texts.T, queue.texts], dim=1)
    return Seen(
        image_states=image_states,
        texts=texts,
        image_vectors=images,
        text_vectors=words,
        slow_images=slow_images,
        slow_texts=slow_texts,
        image_scores=images @ every_text / temperature,
        text_scores=words @ every_image / temperature,
        slow_image_states=slow_states,
    )


@torch.no_grad()
def soft_targets(
    outputs: Seen, queue: Queue, temperature: Tensor, hard: Tensor, alpha: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Targets (batch, batch + queue) of images and of texts: ``hard`` ones, of which a share
    ``alpha`` is given to what the teacher finds alike."""
    every_image = torch.cat([outputs.slow_images.T, queue.images], dim=1)
    every_text = torch.cat([outputs.slow_texts.T, queue.texts], dim=1)
    of_images = F.softmax(outputs.slow_images @ every_text / temperature, dim=1)
    of_texts = F.softmax(outputs.slow_texts @ every_image / temperature, dim=1)
    return alpha * of_images + (1 - alpha) * hard, alpha * of_texts + (1 - alpha) * hard


def same_ids(ids: Tensor, queue: Queue) -> Tensor:
    """ids (batch,) -> shares (batch, batch + queue) of what is of the same image as each row."""
    same = (ids.unsqueeze(1) == torch.cat([ids.unsqueeze(0), queue.ids], dim=1)).float()
    return same / same.sum(dim=1, keepdim=True)


def contrast_loss(outputs: Seen, image_targets: Tensor, text_targets: Tensor) -> Tensor:
    """Mean cross-entropy of both ways."""
    of_images = -(F.log_softmax(outputs.image_scores, dim=1) * image_targets).sum(dim=1).mean()
    of_texts = -(F.log_softmax(outputs.text_scores, dim=1) * text_targets).sum(dim=1).mean()
    return (of_images + of_texts) / 2


def retrieve(
    encoders: PairEncoders,
    teacher: PairEncoders,
    queue: Queue,
    temperature: Tensor,
    batch: Mapping[str, Tensor],
    rules: RetrievalRules,
    *,
    alpha: float | Tensor,
    draw: Draw = draw_by_weight,
) -> Retrieved:
    """One step's losses ``contrast`` and ``match``; the teacher has moved and the queue has the
    batch afterwards. batch: see `look`, and ``ids`` (batch,), equal where the image is the same.
    ``alpha``: the share of the teacher in the targets, ramped over the first epoch."""
    bound(temperature, rules)
    follow(teacher.network, encoders.network, rules.momentum)
    outputs, ids = look(encoders, teacher, queue, temperature, batch), batch["ids"]
    targets = soft_targets(outputs, queue, temperature, same_ids(ids, queue), alpha)
    contrast = contrast_loss(outputs, *targets)
    queue.put(gathered(outputs.slow_images), gathered(outputs.slow_texts), gathered(ids))
    shared = rules.negatives_of_all_ranks and size() > 1
    same = ids.unsqueeze(1) == (gathered(ids) if shared else ids).unsqueeze(0)
    of_images, of_texts = batch_scores(outputs, temperature, rules)
    image_weights = negative_weights(of_texts, same, before=rules.before)
    text_weights = negative_weights(of_images, same, before=rules.before)
    negatives = draw(image_weights, text_weights)
    texts, pool = outputs.texts, None
    if shared:
        texts, every_text = outputs.texts.of_all_ranks()
        pool = (gathered_with_gradient(outputs.image_states), every_text)
    match = matching_loss(encoders, outputs.image_states, texts, negatives, pool)
    return Retrieved({"contrast": contrast, "match": match}, image_weights, text_weights)


def batch_scores(
    outputs: Seen, temperature: Tensor, rules: RetrievalRules
) -> tuple[Tensor, Tensor]:
    """Similarities (batch, batch) that negatives are drawn by: images to texts, texts to images."""
    batch = len(outputs.image_vectors)
    if rules.negatives_by_teacher:
        return outputs.image_scores[:, :batch], outputs.text_scores[:, :batch]
    if rules.negatives_of_all_ranks:
        of_images = outputs.image_vectors @ gathered(outputs.text_vectors).T / temperature
        return of_images, outputs.text_vectors @ gathered(outputs.image_vectors).T / temperature
    of_images = outputs.image_vectors @ outputs.text_vectors.T / temperature
    return of_images, of_images.T


@torch.no_grad()
def bound(temperature: Tensor, rules: RetrievalRules) -> None:
    """Keep a temperature within TEMPERATURES, where the rules say so."""
    if rules.bounded_temperature:
        temperature.clamp_(*TEMPERATURES)


def ramped(alpha: float, step: int, steps: int) -> float:
    """``alpha`` as ALBEF raises it over the first ``steps``; ``step`` counts from 0."""
    return alpha * min(1.0, step / steps)


def in_batch_contrast(images: Tensor, texts: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Unit vectors (batch, dim) of pairs -> mean InfoNCE of both ways, without a queue (van den
    Oord et al., arXiv:1807.03748): of dual encoders."""
    logits = scale * images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    ways = [
        F.cross_entropy(scores, own, label_smoothing=smoothing) for scores in (logits, logits.T)
    ]
    return (ways[0] + ways[1]) / 2
