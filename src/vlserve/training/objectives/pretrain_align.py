"""ALBEF's pretraining: contrast, matching and masked words, all with a teacher.

Li et al., ALBEF (arXiv:2107.07651), models/model_pretrain.py. Pairs of a batch are of different
images; ids are not asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.bert import BertConfig
from vlserve.models.decoder import Head
from vlserve.training.objectives.encoders import AlbefEncoders
from vlserve.training.objectives.hard_negatives import (
    Draw,
    draw_by_weight,
    matching_loss,
    negative_weights,
)
from vlserve.training.objectives.masking import IGNORED
from vlserve.training.objectives.momentum import Queue, follow
from vlserve.training.objectives.retrieve import (
    RetrievalRules,
    Retrieved,
    batch_scores,
    bound,
    contrast_loss,
    look,
    soft_targets,
)

RULES = RetrievalRules(bounded_temperature=True)


class AlignNetwork(nn.Module):
    """ALBEF's network, and the head that says which word was masked."""

    def __init__(self, network: Any, config: BertConfig) -> None:
        super().__init__()
        self.network = network
        self.cls = Head(config)

    def word_logits(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """ids and mask (batch, text) -> (batch, text, words)."""
        encoder = self.network.text_encoder
        words = encoder.embeddings.word_embeddings.weight
        logits: Tensor = self.cls.predictions(encoder(ids, mask, (image_states,)), words)
        return logits


@dataclass(frozen=True)
class Masked:
    """Words of a batch, some of them masked: ids (batch, text), and ``labels``, IGNORED where no
    word is asked."""

    ids: Tensor
    labels: Tensor


def pretrain_align(
    student: AlignNetwork,
    teacher: AlignNetwork,
    queue: Queue,
    batch: Mapping[str, Tensor],
    masked: Masked,
    rules: RetrievalRules = RULES,
    *,
    alpha: float | Tensor,
    draw: Draw = draw_by_weight,
) -> Retrieved:
    """One step's losses ``words``, ``contrast`` and ``match``; the teacher has moved and the queue
    has the batch afterwards. batch: image (batch, 3, height, width), text_ids and text_mask
    (batch, text)."""
    encoders, slow = AlbefEncoders(student.network), AlbefEncoders(teacher.network)
    temperature = student.network.temp
    bound(temperature, rules)
    follow(teacher, student, rules.momentum)
    seen = look(encoders, slow, queue, temperature, batch)
    own = torch.zeros_like(seen.image_scores).fill_diagonal_(1.0)
    contrast = contrast_loss(seen, *soft_targets(seen, queue, temperature, own, alpha))
    queue.put(seen.slow_images, seen.slow_texts)
    of_images, of_texts = batch_scores(seen, temperature, rules)
    same = torch.eye(len(of_images), dtype=torch.bool, device=of_images.device)
    image_weights, text_weights = (negative_weights(x, same) for x in (of_texts, of_images))
    match = matching_loss(
        encoders, seen.image_states, seen.texts, draw(image_weights, text_weights)
    )
    mask = batch["text_mask"]
    with torch.no_grad():
        soft = teacher.word_logits(masked.ids, mask, seen.slow_image_states)
    logits = student.word_logits(masked.ids, mask, seen.image_states)
    words = distilled_words(logits, masked.labels, soft, alpha)
    losses = {"words": words, "contrast": contrast, "match": match}
    return Retrieved(losses, image_weights, text_weights)


def distilled_words(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, alpha: float | Tensor
) -> Tensor:
    """Cross-entropy of the masked words, of which a share ``alpha`` goes to the teacher's
    distribution. logits of both (batch, text, words), labels (batch, text)."""
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    each = -(F.log_softmax(logits, dim=-1) * teacher_logits.softmax(dim=-1)).sum(dim=-1)
    return (1 - alpha) * hard + alpha * each[labels != IGNORED].mean()
