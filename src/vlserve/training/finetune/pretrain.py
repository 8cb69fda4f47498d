"""Pretraining of ALBEF and BLIP as jobs: contrast, matching, and masked or next words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlserve.models.bert import BertConfig
from vlserve.training.distributed import over_ranks
from vlserve.training.evaluators.corpus import Corpus, corpus_of
from vlserve.training.finetune.retrieval import SCORE_BATCH, PairNetwork, RetrievalJob
from vlserve.training.objectives.caption import prompted_loss
from vlserve.training.objectives.encoders import BlipEncoders
from vlserve.training.objectives.masking import IGNORED, mask_words
from vlserve.training.objectives.momentum import Queue, new_teacher
from vlserve.training.objectives.pretrain_align import (
    AlignNetwork,
    Masked,
    pretrain_align,
    pretrain_write,
    written_logits,
)
from vlserve.training.objectives.pretrain_regions import masked_words
from vlserve.training.run import epoch_seed

Batch = Mapping[str, Tensor]
SumOfLosses = Callable[[Batch, int], tuple[float, int]]
WORD_HEAD = "text_encoder.cls."
"""How ALBEF's checkpoints call the head of masked words."""


class AlignedPairs(nn.Module):
    """ALBEF's network with its head of masked words, their teacher and their queue: what a run
    keeps."""

    def __init__(self, student: AlignNetwork, queue_size: int) -> None:
        super().__init__()
        self.student = student
        self.teacher = new_teacher(student)
        self.queue = Queue(student.network.vision_proj.out_features, queue_size)

    @property
    def network(self) -> Any:
        """The network that answers requests."""
        return self.student.network

    def train(self, mode: bool = True) -> "AlignedPairs":
        super().train(mode)
        self.teacher.eval()
        return self


def aligned_pairs(
    network: Any, config: Mapping[str, Any], words: Mapping[str, Tensor], queue_size: int
) -> AlignedPairs:
    """``words``: the checkpoint's head of masked words; empty: it begins at random."""
    student = AlignNetwork(network, BertConfig.model_validate(config["encoder"]))
    if words:
        student.cls.load_state_dict(dict(words))
    return AlignedPairs(student, queue_size)


@dataclass(frozen=True)
class AlbefPretrainJob:
    """See `vlserve.training.run.Job`. ``special``: ids that are never masked."""

    trained: AlignedPairs
    pairs: RetrievalJob
    special: tuple[int, ...]
    mask_id: int
    words: int

    chosen_by = "mean_recall"

    @property
    def steps(self) -> int:
        return self.pairs.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        for batch in self.pairs.batches(seed, epoch):
            masked = self._masked(batch["text_ids"], generator)
            yield {**batch, "masked_ids": masked.ids, "labels": masked.labels}

    def _masked(self, ids: Tensor, generator: torch.Generator) -> Masked:
        special = torch.tensor(self.special)
        masked = mask_words(
            ids, special, mask_id=self.mask_id, words=self.words, generator=generator
        )
        return Masked(masked.ids, masked.labels)

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        masked = Masked(batch["masked_ids"], batch["labels"])
        return pretrain_align(
            *(network.student, network.teacher, network.queue, batch, masked, self.pairs.rules),
            alpha=batch["alpha"],
        ).losses

    @torch.no_grad()
    def figures(self, network: Any) -> dict[str, float]:
        """Recall as of retrieval, and the log-probability of a masked word, a mean over words."""
        recall = self.pairs.figures(network)

        def of(batch: Batch, start: int) -> tuple[float, int]:
            masked = self._masked(batch["text_ids"], torch.Generator().manual_seed(start))
            states = network.network.visual_encoder(batch["image"])
            logits = network.student.word_logits(masked.ids, batch["text_mask"], states)
            count = int((masked.labels != IGNORED).sum())
            return float(masked_words(logits.float(), masked.labels)) * count, count

        return {**recall, "word_log_prob": _mean_log_prob(self.pairs, of)}

    def checkpoint(self, network: Any) -> Mapping[str, Tensor]:
        """The network's own tensors, and the head of masked words, which pretraining goes on
        from."""
        head = network.student.cls.state_dict()
        own: Mapping[str, Tensor] = network.network.state_dict()
        return {**own, **{f"{WORD_HEAD}{name}": x for name, x in head.items()}}


@dataclass(frozen=True)
class BlipPretrainJob:
    """See `vlserve.training.run.Job`. ``dec_id``: the token that a caption begins with."""

    trained: PairNetwork
    pairs: RetrievalJob
    dec_id: int
    smoothing: float

    chosen_by = "mean_recall"

    @property
    def steps(self) -> int:
        return self.pairs.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        return self.pairs.batches(seed, epoch)

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        encoders, teacher = (
            self.pairs.encoders(network.network),
            self.pairs.encoders(network.teacher),
        )
        assert isinstance(encoders, BlipEncoders) and isinstance(teacher, BlipEncoders)
        return pretrain_write(
            *(encoders, teacher, network.queue, network.temperature, batch, self.dec_id),
            self.pairs.rules,
            alpha=batch["alpha"],
            smoothing=self.smoothing,
        ).losses

    @torch.no_grad()
    def figures(self, network: Any) -> dict[str, float]:
        """Recall as of retrieval, and the log-probability of a word, a mean over words."""
        recall = self.pairs.figures(network)

        def of(batch: Batch, _: int) -> tuple[float, int]:
            states = network.network.visual_encoder(batch["image"])
            logits, ids = written_logits(network.network, batch, states, self.dec_id)
            count = int(batch["text_mask"][:, 1:].sum())
            return float(prompted_loss(logits, ids, batch["text_mask"], 1, 0.0)) * count, count

        return {**recall, "word_log_prob": _mean_log_prob(self.pairs, of)}

    def checkpoint(self, network: Any) -> Mapping[str, Tensor]:
        return self.pairs.checkpoint(network)


def _mean_log_prob(pairs: RetrievalJob, of: SumOfLosses) -> float:
    """Of a word of the validation texts; ``of``: a batch and where it begins -> the sum of its
    losses, and of how many words."""
    corpus = corpus_of(pairs.val.file)
    starts = range(0, len(corpus.texts), SCORE_BATCH)
    every = over_ranks(starts, lambda start: of(_val_batch(pairs, corpus, start), start))
    return -sum(loss for loss, _ in every) / max(sum(count for _, count in every), 1)


def _val_batch(pairs: RetrievalJob, corpus: Corpus, start: int) -> Batch:
    places: Sequence[int] = range(start, min(start + SCORE_BATCH, len(corpus.texts)))
    ids, mask = pairs.texts([corpus.texts[place] for place in places])
    image = pairs.val.image([corpus.lines[place] for place in places])
    return {"image": image, "text_ids": ids, "text_mask": mask}
