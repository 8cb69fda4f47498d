"""One objective each, as `vlserve.training.run.Job` asks for it: entail, reason, answer, caption.
Retrieval has a file of its own, beside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vlserve.families.albef import ClassifierGraph
from vlserve.runtime.text import Tokenizer
from vlserve.training.distributed import over_ranks
from vlserve.training.finetune.data import TaskData, padded, texts_of
from vlserve.training.finetune.item_augmentation import ItemChanges
from vlserve.training.objectives import answer, caption, classify
from vlserve.training.run import epoch_seed

Batch = Mapping[str, Tensor]
Item = TypeVar("Item")
SCORE_BATCH = 16


@dataclass(frozen=True)
class Items:
    """What a job learns from: the items of both files, in steps of ``batch_size``."""

    train: TaskData
    val: TaskData
    batch_size: int
    changes: ItemChanges | None = None

    def shown(
        self, lines: Sequence[int], texts: Sequence[str], random: np.random.Generator
    ) -> tuple[Tensor, Sequence[str]]:
        """Images of training lines, and the texts given with them, both as a network learns them:
        augmented, where that was asked for."""
        images = self.train.image(lines)
        return self.changes(images, texts, random) if self.changes else (images, texts)

    @property
    def steps(self) -> int:
        return max(len(self.train.lines) // self.batch_size, 1)

    def orders(self, seed: int, epoch: int) -> Iterator[list[int]]:
        """Lines of each training batch; the last items of an order that fill none are left out."""
        return self._shuffled(self.train.lines, seed, epoch)

    @cached_property
    def captions(self) -> list[tuple[int, str]]:
        """Line and text of each training caption."""
        by_line = self.train.file.by_line
        return [(line, text) for line in self.train.lines for text in texts_of(by_line[line])]

    @property
    def caption_steps(self) -> int:
        return max(len(self.captions) // self.batch_size, 1)

    def caption_orders(self, seed: int, epoch: int) -> Iterator[list[tuple[int, str]]]:
        """As `orders`, of captions: an image comes as often as it has some."""
        return self._shuffled(self.captions, seed, epoch)

    def _shuffled(self, items: Sequence[Item], seed: int, epoch: int) -> Iterator[list[Item]]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        places = torch.randperm(len(items), generator=generator).tolist()
        size = self.batch_size
        for start in range(0, max(len(items) // size, 1) * size, size):
            yield [items[place] for place in places[start : start + size]]

    def val_batches(self) -> Iterator[list[int]]:
        lines = self.val.lines
        for start in range(0, len(lines), SCORE_BATCH):
            yield lines[start : start + SCORE_BATCH]


def random_of(seed: int, epoch: int) -> np.random.Generator:
    """What changes of an epoch's items are drawn by."""
    return np.random.default_rng((seed, epoch))


def _as_they_are(data: TaskData, lines: Sequence[int]) -> tuple[list[Any], Tensor, list[str]]:
    """Items, images and texts."""
    items = data.of(lines)
    return items, data.image(lines), [item.text for item in items]


@dataclass(frozen=True)
class ClassJob:
    """Entail and reason: one class of a text and its image or images."""

    trained: nn.Module
    items: Items
    tokenizer: Tokenizer
    labels: tuple[Any, ...]
    smoothing: float

    chosen_by = "accuracy"

    @property
    def steps(self) -> int:
        return self.items.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        random = random_of(seed, epoch)
        for lines in self.items.orders(seed, epoch):
            items = self.items.train.of(lines)
            texts = [item.text for item in items]
            yield self._batch(items, *self.items.shown(lines, texts, random))

    def _batch(self, items: Sequence[Any], images: Tensor, texts: Sequence[str]) -> Batch:
        ids, mask = padded([self.tokenizer.ids(text) for text in texts], self.pad_id)
        target = torch.tensor([self.labels.index(item.label) for item in items])
        return {"image": images, "text_ids": ids, "text_mask": mask, "target": target}

    @property
    def pad_id(self) -> int:
        return self.tokenizer.spec.pad_id

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = _class_logits(network, batch).float()
        return {"class": classify.cross_entropy(logits, batch["target"], smoothing=self.smoothing)}

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        network.eval()

        def right(lines: list[int]) -> list[bool]:
            batch = self._batch(*_as_they_are(self.items.val, lines))
            hits = _class_logits(network, batch).argmax(1) == batch["target"]
            return list(map(bool, hits))

        every = over_ranks(self.items.val_batches(), right)
        return {"accuracy": float(np.mean([hit for own in every for hit in own]))}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def _class_logits(network: Any, batch: Batch) -> Tensor:
    graph = ClassifierGraph(network)
    logits: Tensor = graph(batch["image"], batch["text_ids"], batch["text_mask"])
    return logits


@dataclass(frozen=True)
class Words:
    """Ids of what a decoder writes: ``start``, the words, ``end``."""

    tokenizer: Any
    start: str
    end: str = "[SEP]"
    pad: str = "[PAD]"

    def ids(self, text: str) -> list[int]:
        words: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.id(self.start), *words, self.id(self.end)]

    def id(self, token: str) -> int:
        number: int = self.tokenizer.token_to_id(token)
        return number


@dataclass(frozen=True)
class AnswerJob:
    """Every answer of a question, weighted by how many gave it."""

    trained: nn.Module
    items: Items
    tokenizer: Tokenizer
    words: Words
    smoothing: float
    begin: int | None
    """Takes the place of a question's first token where the text encoder reads it: BLIP's [ENC]."""

    chosen_by = "answer_log_prob"

    @property
    def steps(self) -> int:
        return self.items.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        random = random_of(seed, epoch)
        for lines in self.items.orders(seed, epoch):
            items = self.items.train.of(lines)
            texts = [item.text for item in items]
            yield self._batch(items, *self.items.shown(lines, texts, random))

    def _batch(self, items: Sequence[Any], images: Tensor, texts: Sequence[str]) -> Batch:
        question_rows = [self.tokenizer.ids(text) for text in texts]
        ids, mask = padded(question_rows, self.tokenizer.spec.pad_id)
        if self.begin is not None:
            ids[:, 0] = self.begin
        answers = [sorted(set(item.label)) for item in items]
        weights = [
            item.label.count(label) / len(item.label)
            for item, own in zip(items, answers, strict=True)
            for label in own
        ]
        rows = [self.words.ids(label) for own in answers for label in own]
        answer_ids, answer_mask = padded(rows, self.words.id(self.words.pad))
        return {
            "image": images,
            "text_ids": ids,
            "text_mask": mask,
            "counts": torch.tensor([len(own) for own in answers]),
            "answer_ids": answer_ids,
            "answer_mask": answer_mask,
            "weights": torch.tensor(weights),
        }

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"answer": self._loss(network, batch, self.smoothing)}

    def _loss(self, network: Any, batch: Batch, smoothing: float) -> Tensor:
        memory = answer.question_memory(
            network, batch["text_ids"], batch["text_mask"], batch["image"], batch["counts"]
        )
        ids = batch["answer_ids"]
        logits = answer.answer_logits(network.text_decoder, ids, batch["answer_mask"], memory)
        questions, pad_id = len(batch["counts"]), self.words.id(self.words.pad)
        return answer.weighted_generation(
            logits.float(), ids, batch["weights"], questions, pad_id=pad_id, smoothing=smoothing
        )

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        """The weighted log-probability of a question's answers, a mean over questions."""
        network.eval()

        def total(lines: list[int]) -> float:
            batch = self._batch(*_as_they_are(self.items.val, lines))
            return -float(self._loss(network, batch, 0.0)) * len(lines)

        every = over_ranks(self.items.val_batches(), total)
        return {"answer_log_prob": sum(every) / len(self.items.val.lines)}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


@dataclass(frozen=True)
class CaptionJob:
    """Every caption of an image, behind a prompt."""

    trained: nn.Module
    items: Items
    words: Words
    prompt: str
    learnt: Callable[[str], str]
    """A caption -> what is learnt of it."""
    smoothing: float
    max_length: int

    chosen_by = "caption_log_prob"

    @property
    def steps(self) -> int:
        return self.items.caption_steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        random = random_of(seed, epoch)
        for captions in self.items.caption_orders(seed, epoch):
            lines, texts = [line for line, _ in captions], [text for _, text in captions]
            yield self._batch(*self.items.shown(lines, texts, random))

    def _batch(self, images: Tensor, texts: Sequence[str]) -> Batch:
        rows = [
            self.words.ids(f"{self.prompt}{self.learnt(text)}")[: self.max_length] for text in texts
        ]
        ids, mask = padded(rows, self.words.id(self.words.pad))
        return {"image": images, "ids": ids, "mask": mask}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"caption": self._loss(network, batch, self.smoothing)}

    def _loss(self, network: Any, batch: Batch, smoothing: float) -> Tensor:
        states = network.visual_encoder(batch["image"])
        everything = torch.ones(states.shape[:2], dtype=torch.int64)
        memory = (*network.text_decoder.memory(states), everything)
        ids, mask = batch["ids"], batch["mask"]
        word_states, _, _ = network.text_decoder(ids.unsqueeze(1), memory, mask=mask.unsqueeze(1))
        logits = network.text_decoder.logits(word_states)[:, 0].float()
        prompt = len(self.words.ids(self.prompt)) - 1  # without the end
        return caption.prompted_loss(logits, ids, mask, prompt, smoothing)

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        """The log-probability of a word of an image's first caption, a mean over batches."""
        network.eval()
        data = self.items.val

        def loss(lines: list[int]) -> float:
            texts = [item.captions[0] for item in data.of(lines)]
            return float(self._loss(network, self._batch(data.image(lines), texts), 0.0))

        return {"caption_log_prob": -float(np.mean(over_ranks(self.items.val_batches(), loss)))}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()
