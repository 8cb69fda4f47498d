"""Captioners of features, S2 and M2: by the next word, and then by reward.

The two stages are two runs, each with an optimiser and schedule of its own:
`vlserve.training.finetune.stages`. Captions are words in lower case without punctuation; a word
that the network lacks is its first one, ``<unk>``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlserve.errors import DataError
from vlserve.exporter.parity import run_eager
from vlserve.exporter.recipe import GraphPlan, Recipe
from vlserve.exporter.regions import read_numbers
from vlserve.runtime.decoding import BeamSearch, CachedStep, Hypothesis, beam_search
from vlserve.runtime.types import Arrays
from vlserve.training.distributed import over_ranks
from vlserve.training.evaluators.items import CaptionItem, read_task_file
from vlserve.training.finetune.data import TaskData
from vlserve.training.finetune.jobs import Items
from vlserve.training.finetune.plan import CaptionerPlan, FinetuneOptions
from vlserve.training.finetune.rewards import Rewards
from vlserve.training.json_lines import refuse_mostly_bad
from vlserve.training.objectives.caption import Memory, caption_log_probs, next_words
from vlserve.training.objectives.self_critical import self_critical, word_log_probs

WORD = re.compile(r"\w+(?:['’]\w+)*")
UNKNOWN_ID = 0
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class PlanBackend:
    """A network's graph, run as it is; see `vlserve.runtime.types.Backend`."""

    plan: GraphPlan

    def run(self, inputs: Arrays) -> Arrays:
        return run_eager(self.plan, {name: torch.from_numpy(x) for name, x in inputs.items()})


@dataclass(frozen=True)
class Writer:
    """A network of a recipe's config: its memory of features, and its words."""

    recipe: Recipe
    config: Mapping[str, Any]
    masked: bool

    @property
    def steps(self) -> int:
        """Words that a caption may have, the end among them."""
        return int(self.config["writing"]["max_length"]) - 1

    def ids(self, caption: str) -> list[int]:
        """From the start to the end; cut to what the network may write."""
        place = {word: number for number, word in enumerate(self.config["words"])}
        words = [place.get(word, UNKNOWN_ID) for word in plain_words(caption)][: self.steps - 1]
        return [self.config["start_id"], *words, self.config["end_id"]]

    def text(self, ids: Sequence[int]) -> str:
        """Words of ids after the start, up to the end."""
        words = []
        for number in ids:
            if number == self.config["end_id"]:
                break
            words.append(str(self.config["words"][number]))
        return " ".join(words)

    def memory(self, network: nn.Module, features: Mapping[str, Tensor]) -> Memory:
        """What the decoder reads; with its gradient."""
        memory: Memory = self.recipe.graphs(network, self.config)["encoder"].module(**features)
        return memory

    def features(self, rows: Sequence[NDArray[np.float32]]) -> dict[str, Tensor]:
        """The encoder's inputs of some images' rows."""
        most = max(len(row) for row in rows)
        visual = torch.zeros(len(rows), most, rows[0].shape[1])
        mask = torch.zeros(len(rows), most, dtype=torch.int64)
        for place, row in enumerate(rows):
            visual[place, : len(row)] = torch.from_numpy(row)
            mask[place, : len(row)] = 1
        return {"visual": visual, "visual_mask": mask} if self.masked else {"visual": visual}

    def search(self, network: nn.Module, memory: Memory) -> list[list[Hypothesis]]:
        """The beams of every image, best first, without dropout."""
        mode = network.training
        network.eval()
        try:
            plan = self.recipe.graphs(network, self.config)["step"]
            names = ("memory_key", "memory_value", "memory_mask")
            arrays = {name: x.detach().numpy() for name, x in zip(names, memory, strict=True)}
            step = CachedStep(PlanBackend(plan), plan.inputs, arrays)
            prompt = np.full((len(memory[2]), 1), self.config["start_id"])
            rules = BeamSearch(
                self.config["writing"]["beams"],
                self.steps + 1,
                self.config["end_id"],
                length_penalty=0.0,
                finished="stay",
            )
            return beam_search(step, prompt, rules)
        finally:
            network.train(mode)


@dataclass(frozen=True)
class WordJob:
    """The first stage: every caption of an image."""

    trained: nn.Module
    items: Items
    writer: Writer
    rewards: Rewards
    """By the training captions."""

    chosen_by = "cider_d"

    @property
    def steps(self) -> int:
        return self.items.caption_steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        for captions in self.items.caption_orders(seed, epoch):
            yield self._batch(self.items.train, *zip(*captions, strict=True))

    def _batch(self, data: TaskData, lines: Sequence[int], texts: Sequence[str]) -> Batch:
        rows = [self.writer.ids(text) for text in texts]
        captions = torch.full((len(rows), max(map(len, rows))), self.writer.config["pad_id"])
        for place, row in enumerate(rows):
            captions[place, : len(row)] = torch.tensor(row)
        features = self.writer.features([data.images[line] for line in lines])
        return {**features, "captions": captions}

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        features = {name: x for name, x in batch.items() if name != "captions"}
        memory = self.writer.memory(network, features)
        log_probs = caption_log_probs(network.decoder, batch["captions"], memory)
        return {"caption": next_words(log_probs, batch["captions"], self.writer.config["pad_id"])}

    @torch.no_grad()
    def figures(self, network: nn.Module) -> dict[str, float]:
        """The log-probability of a word of an image's first caption, a mean over batches; and
        `mean_cider_d`, by which S2 and M2 choose."""
        network.eval()
        data = self.items.val

        def loss(lines: list[int]) -> float:
            texts = [data.file.by_line[line].captions[0] for line in lines]
            return float(self.losses(network, self._batch(data, lines, texts))["caption"])

        losses = over_ranks(self.items.val_batches(), loss)
        cider_d = mean_cider_d(network, self.items, self.writer, self.rewards)
        return {"caption_log_prob": -float(np.mean(losses)), "cider_d": cider_d}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


@dataclass(frozen=True)
class RewardJob:
    """The second stage: CIDEr-D of the network's own beams, with the document frequencies of the
    training captions; the baseline is the mean of an image's beams."""

    trained: nn.Module
    items: Items
    writer: Writer
    rewards: Rewards
    """By the training captions."""

    chosen_by = "cider_d"

    @property
    def steps(self) -> int:
        return self.items.steps

    def batches(self, seed: int, epoch: int) -> Iterator[Batch]:
        data = self.items.train
        for lines in self.items.orders(seed, epoch):
            features = self.writer.features([data.images[line] for line in lines])
            yield {**features, "references": references(data, lines)}

    def losses(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        features = {name: x for name, x in batch.items() if name != "references"}
        with torch.no_grad():
            beams = self.writer.search(network, self.writer.memory(network, features))
        texts, weights = self._written(beams)
        rewards = self._rewards(texts, batch["references"])
        memory = self.writer.memory(network, features)
        start = self.writer.config["start_id"]
        log_probs = word_log_probs(network.decoder, start, texts, weights, memory)
        return {"reward": self_critical(log_probs, rewards)}

    def _written(self, beams: list[list[Hypothesis]]) -> tuple[Tensor, Tensor]:
        """Ids after the start (batch, beams, steps), and 1 up to the end of each."""
        texts = torch.zeros(len(beams), len(beams[0]), self.writer.steps, dtype=torch.int64)
        weights = torch.zeros_like(texts)
        for item, own in enumerate(beams):
            for beam, text in enumerate(own):
                count = len(text.log_probs)
                texts[item, beam, :count] = torch.from_numpy(text.token_ids[1:])
                weights[item, beam, :count] = 1
        return texts, weights

    def _rewards(self, texts: Tensor, truth: Sequence[Sequence[str]]) -> Tensor:
        candidates = [self.writer.text(ids) for own in texts.tolist() for ids in own]
        targets = [own for own in truth for _ in range(texts.shape[1])]
        scores = self.rewards(candidates, targets)
        return torch.tensor(scores).reshape(texts.shape[:2])

    def figures(self, network: nn.Module) -> dict[str, float]:
        return {"cider_d": mean_cider_d(network, self.items, self.writer, self.rewards)}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


@torch.no_grad()
def mean_cider_d(network: nn.Module, items: Items, writer: Writer, rewards: Rewards) -> float:
    """CIDEr-D of the best beam, a mean over validation images, by the training captions'
    frequencies, of plain words."""
    network.eval()

    def scores(lines: list[int]) -> list[float]:
        features = writer.features([items.val.images[line] for line in lines])
        beams = writer.search(network, writer.memory(network, features))
        captions = [writer.text(best.token_ids[1:].tolist()) for best, *_ in beams]
        return rewards(captions, references(items.val, lines))

    every = over_ranks(items.val_batches(), scores)
    return float(np.mean([score for own in every for score in own]))


def captioner_job(
    plan: CaptionerPlan,
    recipe: Recipe,
    network: nn.Module,
    config: Mapping[str, Any],
    objective: str,
    data: tuple[TaskData, TaskData],
    options: FinetuneOptions,
) -> WordJob | RewardJob:
    """The job of either stage."""
    items, writer = Items(*data, options.batch_size), Writer(recipe, config, plan.masked)
    train = data[0]
    rewards = Rewards(references(train, train.lines), options.reward_workers)
    return (WordJob if objective == "caption" else RewardJob)(network, items, writer, rewards)


def read_features(
    path: Path, config: Mapping[str, Any], *, without: frozenset[str] = frozenset()
) -> TaskData:
    """Lines of {"id", "features", "captions"}; ``features``: a .npy file of (rows, features).
    DataError where fewer than two are usable."""
    file = read_task_file(path, CaptionItem)
    exact, most = config.get("cells"), config.get("max_regions")
    rows: dict[int, NDArray[np.float32]] = {}
    reasons: dict[int, str] = {}
    seen: dict[str, NDArray[np.float32]] = {}  # captions of one image may have a line each
    for line, item in file.by_line.items():
        if item.id in without:
            reasons[line] = "its id is in the training file too"
            continue
        try:
            if item.features is None:
                raise ValueError("no features")
            if item.features not in seen:
                array = read_numbers(path.parent / item.features).astype(np.float32)
                seen[item.features] = _checked(array, config["features"], exact, most)
            rows[line] = seen[item.features]
        except DataError as error:
            reasons[line] = f"features: {error}"
        except (TypeError, ValueError) as error:
            reasons[line] = f"features {item.features} cannot be read: {error}"
    file = file.without(reasons)
    refuse_mostly_bad(path, file.used, file.bad_lines)
    if file.used < 2:
        raise DataError(f"{path} has {file.used} usable item(s): at least two are needed")
    return TaskData(file, rows)


def _checked(
    array: NDArray[np.float32], width: int, exact: int | None, most: int | None
) -> NDArray[np.float32]:
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ValueError(f"shape {array.shape}, the network reads rows of {width}")
    if (exact and len(array) != exact) or (most and len(array) > most):
        raise ValueError(f"{len(array)} rows, the network reads {exact or most}")
    if not np.isfinite(array).all():
        raise ValueError("holds what is no number")
    return array


def plain_words(caption: str) -> list[str]:
    return WORD.findall(caption.lower())


def references(data: TaskData, lines: Sequence[int]) -> list[list[str]]:
    """Every caption of each line, as plain words."""
    captions_of_lines = (data.file.by_line[line].captions for line in lines)
    return [[" ".join(plain_words(text)) for text in captions] for captions in captions_of_lines]
