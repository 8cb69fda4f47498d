"""Pretraining of ViLBERT and VisualBERT: masked words, masked regions, alignment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlserve.training.distributed import over_ranks
from vlserve.training.finetune.data import TaskData, texts_of
from vlserve.training.finetune.jobs import Items
from vlserve.training.finetune.regions.data import Regions
from vlserve.training.finetune.regions.inputs import Batch, RegionInputs
from vlserve.training.finetune.regions.plans import RegionPlan
from vlserve.training.finetune.vocabulary import Vocabulary
from vlserve.training.objectives import pretrain_regions
from vlserve.training.objectives.masking import IGNORED, mask_regions, mask_words
from vlserve.training.objectives.pretrain_regions import RegionTarget
from vlserve.training.run import epoch_seed

APART_SHARE = 0.5
"""Of the items, whose text is another image's."""
TRIES = 20
"""Draws of another image's text."""


@dataclass(frozen=True)
class RegionPretrainJob:
    """See `vlserve.training.run.Job`. ``guessed``: what of a region; None: nothing."""

    trained: nn.Module
    items: Items
    inputs: RegionInputs
    plan: RegionPlan
    config: Mapping[str, Any]
    vocabulary: Vocabulary
    guessed: RegionTarget | None

    chosen_by = "word_log_prob"

    @property
    def steps(self) -> int:
        return self.items.caption_steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        for captions in self.items.caption_orders(seed, epoch):
            yield self._batch(self.items.train, captions, generator)

    def _batch(
        self, data: TaskData, captions: Sequence[tuple[int, str]], generator: torch.Generator
    ) -> Batch:
        """Masked words and regions, and ``apart`` (batch,): 1 where a text is another image's."""
        lines = [line for line, _ in captions]
        samples = [self._text(data, *caption, generator) for caption in captions]
        texts = self.inputs.ids([ids for ids, _, _ in samples])
        types = torch.zeros_like(texts["text_ids"])
        for row, (ids, first, _) in enumerate(samples):
            types[row, first : len(ids)] = 1
        masked = mask_words(
            texts["text_ids"],
            torch.tensor(self.vocabulary.special),
            mask_id=self.vocabulary.mask_id,
            words=self.vocabulary.words,
            generator=generator,
        )
        regions = self._regions([data.images[line] for line in lines], generator)
        return {
            **texts,
            **regions,
            "text_ids": masked.ids,
            "text_types": types,
            "labels": masked.labels,
            "apart": torch.tensor([int(apart) for _, _, apart in samples]),
        }

    def _text(
        self, data: TaskData, line: int, text: str, generator: torch.Generator
    ) -> tuple[NDArray[np.int64], int, bool]:
        """Ids, where the second caption begins, and whether the text is another image's. Where two
        captions are read, the first is the image's own and the second maybe not."""
        own = [caption for caption in texts_of(data.file.by_line[line]) if caption != text]
        two = self.plan.captions > 1 and bool(own)
        other, apart = text, False
        if float(torch.rand((), generator=generator)) < APART_SHARE:
            strange = _another(data, line, generator)
            other, apart = strange or text, strange is not None
        if two and not apart:
            other = own[int(torch.randint(len(own), (), generator=generator))]
        ids = self.inputs.tokenizer.ids(text if two else other)
        if not two:
            return ids, len(ids), apart
        second = self.inputs.tokenizer.ids(other)[1:]  # without [CLS]
        whole = np.concatenate([ids, second])[: self.inputs.tokenizer.spec.max_length]
        return whole, len(ids), apart

    def _regions(self, looks: Sequence[Regions], generator: torch.Generator) -> Batch:
        """Regions, some of them zeroed before their mean is taken; ``asked`` (batch, regions) and
        ``region_targets`` (batch, regions, size) are of the regions without the whole image."""
        if self.guessed is None:
            return self.inputs.looks(looks)
        inputs, selections, targets = [], [], []
        for look in looks:
            mask = torch.ones(1, len(look.visual))
            visual = torch.tensor(look.visual).unsqueeze(0)
            hidden, selection = mask_regions(visual, mask, generator=generator)
            inputs.append(Regions(hidden[0].numpy(), look.boxes))
            selections.append(selection[0])
            target = look.seen if self.guessed == "distribution" else look.visual
            assert target is not None
            targets.append(torch.tensor(target))
        pad = nn.utils.rnn.pad_sequence
        return self.inputs.looks(inputs) | {
            "asked": pad(selections, batch_first=True),
            "region_targets": pad(targets, batch_first=True),
        }

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        guesses = self.plan.guesses(network, self.config, batch)
        losses = {
            "words": pretrain_regions.masked_words(guesses.words.float(), batch["labels"]),
            "alignment": pretrain_regions.alignment(guesses.together.float(), batch["apart"]),
        }
        if guesses.regions is not None and self.guessed is not None:
            scores = guesses.regions[:, int(self.inputs.global_region) :].float()
            losses["regions"] = pretrain_regions.masked_regions(
                scores, batch["region_targets"], batch["asked"], self.guessed
            )
        return losses

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        """The log-probability of a masked word, a mean over words; how often text and image are
        told to belong together or not. What is masked is always the same."""
        network.eval()
        data = self.items.val

        def of(lines: list[int]) -> tuple[float, int, list[bool]]:
            generator = torch.Generator().manual_seed(lines[0])
            captions = [(line, texts_of(data.file.by_line[line])[0]) for line in lines]
            batch = self._batch(data, captions, generator)
            guesses = self.plan.guesses(network, self.config, batch)
            count = int((batch["labels"] != IGNORED).sum())
            loss = float(pretrain_regions.masked_words(guesses.words.float(), batch["labels"]))
            right = guesses.together.argmax(dim=1) == batch["apart"]
            return (loss * count if count else 0.0), count, right.tolist()

        every = over_ranks(self.items.val_batches(), of)
        words = max(sum(count for _, count, _ in every), 1)
        return {
            "word_log_prob": -sum(loss for loss, _, _ in every) / words,
            "alignment_accuracy": float(np.mean([hit for _, _, own in every for hit in own])),
        }

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def _another(data: TaskData, line: int, generator: torch.Generator) -> str | None:
    """A text of another image, drawn; None where TRIES lines are of the same image."""
    items = data.file.items
    for _ in range(TRIES):
        item = items[int(torch.randint(len(items), (), generator=generator))]
        if item.look != data.file.by_line[line].look:
            texts = texts_of(item)
            return texts[int(torch.randint(len(texts), (), generator=generator))]
    return None
