"""Train a dual encoder on pairs of images and texts: `fit_pairs`.

The loss is InfoNCE both ways (van den Oord et al., arXiv:1807.03748; with a learnt temperature as
in CLIP, Radford et al., arXiv:2103.00020): of a batch each image is to tell its own text from those
of the others, and each text its own image.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vlserve.errors import DataError
from vlserve.exporter.checkpoint import load_into
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.archive import file_sha256
from vlserve.training.dataset import read_serving
from vlserve.training.evaluators.corpus import recall_both_ways
from vlserve.training.evaluators.items import PairedItem, read_task_file
from vlserve.training.json_lines import BadLine, first_of
from vlserve.training.objectives.retrieve import in_batch_contrast
from vlserve.training.options import PairOptions, TrainOptions, parse_options
from vlserve.training.pairs import FrozenEncoders, Pairs, Reader
from vlserve.training.plan import digest_of
from vlserve.training.run import OnProgress, Progress
from vlserve.training.run import train as train_job
from vlserve.training.run_folder import (
    LAST,
    METRICS,
    begin_folder,
    check_resumable,
    keep_record,
    write_json,
)
from vlserve.training.run_log import OF_THE_RUN, LogTo

NO_RECALLS = (*OF_THE_RUN, "train_loss")
"""Figures of an epoch beside its recalls."""


class Projections(Protocol):
    """The part of a dual encoder that is trained: features of one kind -> unit vectors."""

    def images(self, features: Tensor) -> Tensor: ...
    def texts(self, features: Tensor) -> Tensor: ...
    def scale(self) -> Tensor:
        """Return what cosines are multiplied by in the loss: 1 / temperature."""
        ...


class PairPlan(Protocol):
    """What a recipe's attribute ``training`` says where it is trained on pairs. Its networks have
    the parts ``encoder``, which is frozen, and ``head``, which is trained."""

    options: type[PairOptions]

    def new_config(self, options: Any, training: Mapping[str, Any]) -> dict[str, Any]:
        """Return config.json of a new checkpoint."""
        ...

    def pretrained(self, options: Any) -> Mapping[str, Tensor]:
        """Return every tensor of ``encoder``, by its name there."""
        ...


@dataclass(frozen=True)
class Recalls:
    """Recall at 1, 5 and 10 both ways, and their mean."""

    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class PairReport:
    """What a run left in ``out``: model.safetensors and config.json, for the exporter;
    metrics.json, and bad_lines.json if a line was left out. ``metrics``: of the best epoch on the
    validation file. ``train_items``: images."""

    out: Path
    metrics: Recalls
    best_epoch: int
    epochs: int
    train_items: int
    bad_lines: tuple[BadLine, ...]
    seconds: float


def is_of_pairs(recipe: Recipe) -> bool:
    """Return whether a recipe is trained on pairs, by `fit_pairs`."""
    options = getattr(getattr(recipe, "training", None), "options", TrainOptions)
    return issubclass(options, PairOptions)


def fit_pairs(
    recipe: Recipe,
    train: Path,
    val: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    strict: bool = False,
    features: Path | None = None,
    progress: OnProgress | None = None,
    log_to: LogTo = "jsonl",
) -> PairReport:
    """Train ``recipe`` on the pairs of ``train``: lines of {"id", "img", "captions"} or {"id",
    "img", "text"}. Keeps the epoch with the best mean of all recalls on ``val``. ``features``: a
    folder that keeps what the frozen part makes of images and texts; by default in ``out``.

    The same files, options, seed and number of threads give the same figures. Raises DataError (a
    file without two usable images; any bad line if ``strict``), SettingsError (options), or
    TrainingError (a loss that is no longer a number, weights that are missing, a run that cannot be
    resumed).
    """
    start = time.monotonic()
    plan: PairPlan = recipe.training  # type: ignore[attr-defined]
    pair_options = parse_options(plan.options, options or {})
    weights = plan.pretrained(pair_options)
    facts: dict[str, Any] = {
        "options": pair_options.said(),
        "seed": seed,
        "train_sha256": file_sha256(train),
        "val_sha256": file_sha256(val),
        "pretrained_sha256": digest_of(weights),
    }
    config = plan.new_config(pair_options, facts)
    torch.manual_seed(seed)
    network = recipe.build(config)
    frozen, head = network.get_submodule("encoder"), network.get_submodule("head")
    load_into(frozen, weights, recipe.spec.family)
    frozen.eval().requires_grad_(False)
    if resume:
        check_resumable(out / LAST, facts)
    image, tokenizer = read_serving(recipe, config)
    reader = Reader(
        _as_encoders(frozen),
        facts["pretrained_sha256"],
        image,
        tokenizer,
        features or out / "features",
        progress and (lambda count, total: progress(Progress("encode", count, total))),
    )
    data = reader.read(train)
    train_ids = frozenset(item.id for item in read_task_file(train, PairedItem).items)
    validation = reader.read(val, without=train_ids)
    bad_lines = (*data.bad_lines, *validation.bad_lines)
    if strict and bad_lines:
        raise DataError(f"{len(bad_lines)} bad line(s): {first_of(bad_lines)}")
    begin_folder(out, config, bad_lines, resume=resume)
    job = PairJob(network, head, data, validation, pair_options)
    epochs = train_job(
        job, pair_options, seed, out, facts=facts, resume=resume, progress=progress, log_to=log_to
    )
    keep_record(out, epochs, job.chosen_by)
    best = max(epochs, key=lambda epoch: float(epoch["mean_recall"]))
    report = PairReport(
        out=out,
        metrics=Recalls({k: v for k, v in best.items() if k not in NO_RECALLS}),
        best_epoch=int(best["epoch"]),
        epochs=len(epochs),
        train_items=len(data.images),
        bad_lines=bad_lines,
        seconds=time.monotonic() - start,
    )
    facts_of_run = {
        "best_epoch": report.best_epoch,
        "seconds": report.seconds,
        **facts,
        "epochs": epochs,
    }
    write_json(out / METRICS, {**report.metrics.to_json(), **facts_of_run})
    return report


@dataclass(frozen=True)
class PairJob:
    """See `vlserve.training.run.Job`: every image as often as the one with most texts has some, in
    whole batches, each time with one of its texts."""

    network: nn.Module
    head: nn.Module
    data: Pairs
    held_out: Pairs
    options: PairOptions

    chosen_by = "mean_recall"

    @property
    def trained(self) -> nn.Module:
        return self.head

    @property
    def steps(self) -> int:
        return self._turns * max(len(self.data.images) // self.options.batch_size, 1)

    @property
    def _turns(self) -> int:
        return max(len(own) for own in self.data.texts_of_images())

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features of images and of texts."""
        random = np.random.default_rng((seed, epoch))
        texts, dropout = self.data.texts_of_images(), self.options.dropout
        for _ in range(self._turns):
            order = random.permutation(len(self.data.images))
            size = min(self.options.batch_size, len(order))
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                own = [random.choice(texts[row]) for row in rows]
                images = torch.from_numpy(self.data.images[rows])
                words = torch.from_numpy(self.data.texts[own])
                yield _dropped(images, dropout, random), _dropped(words, dropout, random)

    def losses(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        head, (images, words) = _as_projections(network), batch
        vectors = head.images(images), head.texts(words)
        smoothing = self.options.label_smoothing
        return {"contrast": in_batch_contrast(*vectors, head.scale(), smoothing)}

    def figures(self, network: nn.Module) -> dict[str, float]:
        recalls = _recalls(_as_projections(network), self.held_out)
        return {**recalls, "mean_recall": float(np.mean(list(recalls.values())))}

    def checkpoint(self, network: nn.Module) -> dict[str, Tensor]:
        own = {f"head.{name}": x for name, x in network.state_dict().items()}
        return {**self.network.state_dict(), **own}


def _dropped(features: Tensor, share: float, random: np.random.Generator) -> Tensor:
    mask = torch.from_numpy(random.random(features.shape, dtype=np.float32) >= share)
    return features * mask / (1 - share)


@torch.no_grad()
def _recalls(head: Projections, pairs: Pairs) -> dict[str, float]:
    images = head.images(torch.from_numpy(pairs.images)).double()
    texts = head.texts(torch.from_numpy(pairs.texts)).double()
    cosines = (images @ texts.T).numpy()
    recall = recall_both_ways(pairs.corpus, cosines, cosines)
    return {name: float(values.mean()) for name, values in recall.items()}


def _as_projections(module: Any) -> Projections:
    projections: Projections = module
    return projections


def _as_encoders(module: Any) -> FrozenEncoders:
    encoders: FrozenEncoders = module
    return encoders
