"""Match of ViLBERT: the right pair of four, as its retrieval is trained.

Lu et al., ViLBERT (arXiv:1908.02265), section 3.1; vilbert/datasets/retreival_dataset.py: a text
and its image, another text, another image, and an image that looks much like the right one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.training.distributed import over_ranks
from vlserve.training.evaluators.corpus import Corpus, corpus_of
from vlserve.training.finetune.data import TaskData
from vlserve.training.finetune.regions.inputs import Batch, RegionInputs
from vlserve.training.finetune.regions.jobs import Scores
from vlserve.training.run import epoch_seed

CHOICES = 4
ALIKE = 100
"""Images of which one that looks alike is drawn."""
ROWS_AT_ONCE = 1024
"""Of the cosines of all images with all others, which would be 51 GB for the images of COCO."""
SCORE_BATCH = 8


@dataclass(frozen=True)
class Pairs:
    """Images and texts of a file, and which images look alike by the mean of their features."""

    data: TaskData

    @cached_property
    def corpus(self) -> Corpus:
        return corpus_of(self.data.file)

    @cached_property
    def looks(self) -> list[Any]:
        """Regions of each image of the corpus."""
        corpus = self.corpus
        line_of = dict(zip(corpus.owners, corpus.lines, strict=True))
        return [self.data.images[line_of[place]] for place in range(len(corpus.looks))]

    @cached_property
    def alike(self) -> Tensor:
        """Of each image the places of those nearest to it, (images, at most ALIKE)."""
        means = torch.stack([torch.from_numpy(look.visual.mean(axis=0)) for look in self.looks])
        means = F.normalize(means, dim=1)
        blocks = []
        for places in torch.split(torch.arange(len(means)), ROWS_AT_ONCE):
            cosines = means[places] @ means.T
            cosines[torch.arange(len(places)), places] = -torch.inf
            blocks.append(cosines.topk(min(ALIKE, len(means) - 1), dim=1).indices)
        return torch.cat(blocks)

    def choices(self, text: int, random: np.random.Generator) -> list[tuple[int, int]]:
        """Image and text of each choice, the right one first. A corpus of one image has none that
        is another: the right one stands for it."""
        corpus = self.corpus
        owner = corpus.owners[text]
        others = len(corpus.looks) - 1
        if not others:
            return [(owner, text)] * CHOICES
        other = int(random.integers(others))
        image = other + (other >= owner)
        strange = int(random.integers(len(corpus.texts)))
        while corpus.owners[strange] == owner:
            strange = int(random.integers(len(corpus.texts)))
        alike = int(random.choice(self.alike[owner].numpy()))
        return [(owner, text), (owner, strange), (image, text), (alike, text)]


@dataclass(frozen=True)
class MatchJob:
    """See `vlserve.training.run.Job`. An item is a text with its image."""

    trained: nn.Module
    train: Pairs
    val: Pairs
    inputs: RegionInputs
    scores: Scores
    batch_size: int

    chosen_by = "choice_accuracy"

    @property
    def steps(self) -> int:
        return max(len(self.train.corpus.texts) // self.batch_size, 1)

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        random = np.random.default_rng((seed, epoch))
        order = torch.randperm(len(self.train.corpus.texts), generator=generator).tolist()
        for step in range(self.steps):
            texts = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(self.train, texts, random)

    def _batch(self, pairs: Pairs, texts: Sequence[int], random: np.random.Generator) -> Batch:
        """Choices of each text, one after the other: (texts * CHOICES, …)."""
        choices = [pair for text in texts for pair in pairs.choices(text, random)]
        return self.inputs.batch(
            [pairs.corpus.texts[text] for _, text in choices],
            [pairs.looks[image] for image, _ in choices],
        )

    def _logits(self, network: Any, batch: Batch) -> Tensor:
        return self.scores(network, batch).float().reshape(-1, CHOICES)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = self._logits(network, batch)
        return {"match": F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))}

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        """How often the right pair of four has the highest score; the choices are always the
        same."""
        network.eval()
        count = len(self.val.corpus.texts)

        def right(start: int) -> list[bool]:
            texts = range(start, min(start + SCORE_BATCH, count))
            batch = self._batch(self.val, texts, np.random.default_rng(start))
            return (self._logits(network, batch).argmax(dim=1) == 0).tolist()

        every = over_ranks(range(0, count, SCORE_BATCH), right)
        return {"choice_accuracy": float(np.mean([hit for own in every for hit in own]))}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()
