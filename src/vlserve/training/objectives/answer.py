"""Visual question answering: soft targets over a list of answers, or an answer that is written."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.models.decoder import TextDecoder

LABEL_SMOOTHING = 0.1
"""Of every word that BLIP's decoder learns."""


def soft_targets_kl(logits: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the targets, a mean over the batch: VisualBERT's. Both
    (batch, answers); targets are shares of an answer, and may sum to less than 1."""
    return F.kl_div(F.log_softmax(logits, dim=-1), targets, reduction="batchmean")


def soft_targets_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of every answer, summed over answers and averaged over questions:
    ViLBERT's, over 3,129 answers. Both (batch, answers); targets in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, targets) * logits.shape[1]


def answer_scores(count: int) -> float:
    """The share of VQA's score that an answer has which ``count`` of ten people gave."""
    return min(1.0, count * 0.3)


def question_memory(
    network: Any, batch_ids: Tensor, mask: Tensor, image: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask of what the decoder reads, once for each answer of a question.

    image (questions, 3, height, width), batch_ids and mask (questions, text), counts (questions,):
    how many answers each has."""
    states = network.text_encoder(batch_ids, mask, (network.visual_encoder(image),))
    key, value = network.text_decoder.memory(states)
    each = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return key[each], value[each], mask[each]


def answer_logits(
    decoder: TextDecoder, ids: Tensor, mask: Tensor, memory: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """ids and mask (answers, tokens) -> logits of the next token (answers, tokens - 1, words)."""
    states, _, _ = decoder(ids.unsqueeze(1), memory, mask=mask.unsqueeze(1))
    return decoder.logits(states)[:, 0, :-1]


def weighted_generation(
    logits: Tensor,
    ids: Tensor,
    weights: Tensor,
    questions: int,
    *,
    pad_id: int,
    smoothing: float = 0.0,
    teacher_logits: Tensor | None = None,
    alpha: float | Tensor = 0.0,
) -> Tensor:
    """Cross-entropy of each answer's words, summed, weighted, and divided by the number of
    questions: BLIP's (``smoothing`` 0.1) and ALBEF's (with a teacher, whose words have the share
    ``alpha``). logits of both (answers, tokens - 1, words), ids (answers, tokens), weights
    (answers,)."""
    target = ids[:, 1:]
    real = target != pad_id
    each = F.cross_entropy(
        logits.transpose(1, 2), target, reduction="none", label_smoothing=smoothing
    )
    loss = (each * real).sum(dim=1)
    if teacher_logits is not None:
        soft = teacher_logits.detach().softmax(dim=-1)
        distillation = -(F.log_softmax(logits, dim=-1) * soft).sum(dim=-1)
        loss = (1 - alpha) * loss + alpha * (distillation * real).sum(dim=1)
    return (weights * loss).sum() / questions
