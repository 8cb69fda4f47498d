"""Retrieval as a job: contrast with a teacher and a queue, and matching on hard negatives."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlserve.runtime.text import Tokenizer
from vlserve.training.distributed import over_ranks
from vlserve.training.distributed import size as size_of_run
from vlserve.training.evaluators.corpus import Corpus, corpus_of, recall_both_ways
from vlserve.training.finetune.data import TaskData, padded
from vlserve.training.finetune.item_augmentation import ItemChanges
from vlserve.training.finetune.plan import FinetuneOptions
from vlserve.training.objectives.encoders import PairEncoders, image_vector, text_vector
from vlserve.training.objectives.momentum import Queue, new_teacher
from vlserve.training.objectives.retrieve import RetrievalRules, ramped, retrieve
from vlserve.training.run import epoch_seed

Batch = Mapping[str, Tensor]
Encoders = Callable[[Any], PairEncoders]
TEMPERATURE = 0.07
"""Of a network whose checkpoint has none."""
SCORE_BATCH = 32


class PairNetwork(nn.Module):
    """A network that learns, with its teacher, its queue and its temperature: what a run keeps."""

    temperature: nn.Parameter

    def __init__(self, network: Any, queue_size: int, temperature: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.teacher = new_teacher(network)
        if hasattr(self.teacher, "text_decoder"):
            del self.teacher.text_decoder  # BLIP's teacher writes nothing
        self.queue = Queue(network.vision_proj.out_features, queue_size)
        own = getattr(network, "temp", None)
        if own is None:
            value = torch.tensor(TEMPERATURE) if temperature is None else temperature
            own = nn.Parameter(value.detach().clone().float())
        self.temperature = own

    def train(self, mode: bool = True) -> "PairNetwork":
        super().train(mode)
        self.teacher.eval()
        return self


@dataclass(frozen=True)
class RetrievalJob:
    """See `vlserve.training.run.Job`. An item is a text with its image: an image comes as often in
    an epoch as it has texts."""

    trained: nn.Module
    encoders: Encoders
    train: TaskData
    val: TaskData
    tokenizer: Tokenizer
    rules: RetrievalRules
    options: FinetuneOptions
    changes: ItemChanges | None = None
    ramp: int = 1
    """Epochs over which the teacher's share is raised."""

    chosen_by = "mean_recall"

    @cached_property
    def corpus(self) -> Corpus:
        """Of the training file."""
        return corpus_of(self.train.file)

    @property
    def steps(self) -> int:
        return max(len(self.corpus.texts) // self.options.batch_size, 1)

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        random = np.random.default_rng((seed, epoch))
        corpus, size = self.corpus, self.options.batch_size
        order = torch.randperm(len(corpus.texts), generator=generator).tolist()
        for step in range(self.steps):
            places = order[step * size : (step + 1) * size]
            images = self.train.image([corpus.lines[place] for place in places])
            texts = [corpus.texts[place] for place in places]
            if self.changes:
                images, texts = self.changes(images, texts, random)
            ids, mask = self.texts(texts)
            position = (epoch - 1) * self.steps + step - step % size_of_run()
            yield {
                "image": images,
                "text_ids": ids,
                "text_mask": mask,
                "ids": torch.tensor([corpus.owners[place] for place in places]),
                "alpha": torch.tensor(ramped(self.options.alpha, position, self.ramp * self.steps)),
            }

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        result = retrieve(
            self.encoders(network.network),
            self.encoders(network.teacher),
            network.queue,
            network.temperature,
            batch,
            self.rules,
            alpha=batch["alpha"],
        )
        return result.losses

    @torch.no_grad()
    def figures(self, network: Any) -> dict[str, float]:
        """Recall by cosine alone, both ways, and its mean."""
        network.eval()
        corpus = corpus_of(self.val.file)
        encoders = self.encoders(network.network)
        images, texts = self._vectors(encoders, corpus)
        cosines = (images.double() @ texts.double().T).numpy()
        recall = recall_both_ways(corpus, cosines, cosines)
        figures = {name: float(values.mean()) for name, values in recall.items()}
        return {**figures, "mean_recall": float(np.mean(list(figures.values())))}

    def _vectors(self, encoders: PairEncoders, corpus: Corpus) -> tuple[Tensor, Tensor]:
        """Unit vectors (images, dim) and (texts, dim)."""
        network = encoders.network
        line_of = dict(zip(corpus.owners, corpus.lines, strict=True))

        def images(start: int) -> Tensor:
            places = range(start, min(start + SCORE_BATCH, len(corpus.looks)))
            pixels = self.val.image([line_of[place] for place in places])
            return image_vector(network, network.visual_encoder(pixels))

        def texts(start: int) -> Tensor:
            ids, mask = self.texts(corpus.texts[start : start + SCORE_BATCH])
            return text_vector(network, encoders.texts(ids, mask).states)

        looks = over_ranks(range(0, len(corpus.looks), SCORE_BATCH), images)
        words = over_ranks(range(0, len(corpus.texts), SCORE_BATCH), texts)
        return torch.cat(looks), torch.cat(words)

    def texts(self, texts: Any) -> tuple[Tensor, Tensor]:
        """Ids and mask (texts, tokens)."""
        rows = [self.tokenizer.ids(text) for text in texts]
        return padded(rows, self.tokenizer.spec.pad_id)

    def checkpoint(self, network: Any) -> Mapping[str, Tensor]:
        """The network's own tensors; teacher, queue and BLIP's temperature serve no request."""
        tensors: Mapping[str, Tensor] = network.network.state_dict()
        return tensors
