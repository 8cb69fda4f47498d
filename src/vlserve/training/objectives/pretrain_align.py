"""ALBEF's and BLIP's pretraining: contrast and matching with a teacher, and words.

Li et al., ALBEF (arXiv:2107.07651), models/model_pretrain.py: masked words, distilled. Li et al.,
BLIP (arXiv:2201.12086), models/blip_pretrain.py: the next word, by a decoder that shares all with
the text encoder but its self-attention. Pairs of a batch are of different images; ids are not
asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.bert import BertConfig
from vlserve.models.decoder import Head
from vlserve.training.distributed import gathered
from vlserve.training.objectives.caption import prompted_loss
from vlserve.training.objectives.encoders import AlbefEncoders, BlipEncoders, PairEncoders
from vlserve.training.objectives.hard_negatives import (
    Draw,
    draw_by_weight,
    matching_loss,
    negative_weights,
)
from vlserve.training.objectives.masking import IGNORED
from vlserve.training.objectives.momentum import Queue, follow
from vlserve.training.objectives.pretrain_regions import masked_words
from vlserve.training.objectives.retrieve import (
    RetrievalRules,
    Retrieved,
    Seen,
    batch_scores,
    bound,
    contrast_loss,
    look,
    soft_targets,
)

RULES = RetrievalRules(bounded_temperature=True)
BLIP_RULES = RetrievalRules(bounded_temperature=True, after=1e-4)
BLIP_RAMP = 2
"""Epochs over which BLIP raises the teacher's share."""


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
    outputs, alignment = _align(encoders, slow, queue, temperature, batch, rules, alpha, draw)
    mask = batch["text_mask"]
    with torch.no_grad():
        soft = teacher.word_logits(masked.ids, mask, outputs.slow_image_states)
    logits = student.word_logits(masked.ids, mask, outputs.image_states)
    words = distilled_words(logits, masked.labels, soft, alpha)
    losses = {"words": words, **alignment.losses}
    return Retrieved(losses, alignment.image_weights, alignment.text_weights)


def pretrain_write(
    encoders: BlipEncoders,
    teacher: BlipEncoders,
    queue: Queue,
    temperature: Tensor,
    batch: Mapping[str, Tensor],
    dec_id: int,
    rules: RetrievalRules = BLIP_RULES,
    *,
    alpha: float | Tensor,
    smoothing: float,
    draw: Draw = draw_by_weight,
) -> Retrieved:
    """One step's losses ``contrast``, ``match`` and ``caption``, of BLIP; else as
    `pretrain_align`. ``dec_id``: the token that a text begins with where it is written."""
    bound(temperature, rules)
    follow(teacher.network, encoders.network, rules.momentum)
    outputs, alignment = _align(encoders, teacher, queue, temperature, batch, rules, alpha, draw)
    logits, ids = written_logits(encoders.network, batch, outputs.image_states, dec_id)
    caption = prompted_loss(logits, ids, batch["text_mask"], 1, smoothing)
    losses = {**alignment.losses, "caption": caption}
    return Retrieved(losses, alignment.image_weights, alignment.text_weights)


def written_logits(
    network: Any, batch: Mapping[str, Tensor], image_states: Tensor, dec_id: int
) -> tuple[Tensor, Tensor]:
    """Logits (batch, text, words) of what follows each word of the batch's texts, and their ids,
    which begin with ``dec_id``."""
    ids = torch.cat(
        [torch.full_like(batch["text_ids"][:, :1], dec_id), batch["text_ids"][:, 1:]], dim=1
    )
    decoder = network.text_decoder
    everything = torch.ones(image_states.shape[:2], dtype=torch.int64, device=ids.device)
    memory = (*decoder.memory(image_states), everything)
    states, _, _ = decoder(ids.unsqueeze(1), memory, mask=batch["text_mask"].unsqueeze(1))
    return decoder.logits(states)[:, 0].float(), ids


def tie_decoder(network: Any) -> None:
    """Share all of BLIP's text encoder with its decoder but the self-attention, as it is pretrained
    (models/blip_pretrain.py, ``tie_encoder_decoder_weights``): a checkpoint holds both."""
    encoder, decoder = network.text_encoder, network.text_decoder.bert
    decoder.embeddings = encoder.embeddings
    for own, source in zip(decoder.layers, encoder.layers, strict=True):
        own.crossattention = source.crossattention
        own.intermediate, own.output = source.intermediate, source.output


def distilled_words(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, alpha: float | Tensor
) -> Tensor:
    """Cross-entropy of the masked words, of which a share ``alpha`` goes to the teacher's
    distribution. logits of both (batch, text, words), labels (batch, text). 0 where no word is
    masked."""
    asked = labels != IGNORED
    each = -(F.log_softmax(logits, dim=-1) * teacher_logits.softmax(dim=-1)).sum(dim=-1)
    soft = (each * asked).sum() / asked.sum().clamp(min=1)
    return (1 - alpha) * masked_words(logits, labels) + alpha * soft


def _align(
    encoders: PairEncoders,
    teacher: PairEncoders,
    queue: Queue,
    temperature: Tensor,
    batch: Mapping[str, Tensor],
    rules: RetrievalRules,
    alpha: float | Tensor,
    draw: Draw,
) -> tuple[Seen, Retrieved]:
    """Contrast and matching of pairs of which no two are of one image."""
    outputs = look(encoders, teacher, queue, temperature, batch)
    own = torch.zeros_like(outputs.image_scores).fill_diagonal_(1.0)
    contrast = contrast_loss(outputs, *soft_targets(outputs, queue, temperature, own, alpha))
    queue.put(gathered(outputs.slow_images), gathered(outputs.slow_texts))
    of_images, of_texts = batch_scores(outputs, temperature, rules)
    same = torch.eye(len(of_images), dtype=torch.bool, device=of_images.device)
    image_weights, text_weights = (
        negative_weights(x, same, after=rules.after) for x in (of_texts, of_images)
    )
    match = matching_loss(
        encoders, outputs.image_states, outputs.texts, draw(image_weights, text_weights)
    )
    losses = {"contrast": contrast, "match": match}
    return outputs, Retrieved(losses, image_weights, text_weights)
