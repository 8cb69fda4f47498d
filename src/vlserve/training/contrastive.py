"""Train a dual encoder on pairs of images and texts: `fit_pairs`.

The loss is InfoNCE both ways (van den Oord et al., arXiv:1807.03748; with a learnt temperature as
in CLIP, Radford et al., arXiv:2103.00020): of a batch each image is to tell its own text from those
of the others, and each text its own image.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vlserve.errors import DataError, TrainingError
from vlserve.exporter.checkpoint import load_into
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.archive import file_sha256
from vlserve.training.dataset import read_serving
from vlserve.training.evaluators.corpus import recall_both_ways
from vlserve.training.evaluators.items import PairedItem, read_task_file
from vlserve.training.fit import BAD_LINES, CONFIG, METRICS, WEIGHTS, OnProgress, Progress
from vlserve.training.lines import BadLine, first_of, write_bad_lines
from vlserve.training.objectives.retrieve import in_batch_contrast
from vlserve.training.options import TrainOptions, parse_options
from vlserve.training.pairs import FrozenEncoders, Pairs, Reader
from vlserve.training.plan import digest_of
from vlserve.training.state import TrainState, new_state, save_weights


class PairOptions(TrainOptions):
    """What a run on pairs may be told."""

    augment: bool = False
    label_smoothing: float = 0.0


class Projections(Protocol):
    """The part of a dual encoder that is trained: features of one kind -> unit vectors."""

    def images(self, features: Tensor) -> Tensor: ...
    def texts(self, features: Tensor) -> Tensor: ...
    def scale(self) -> Tensor:
        """What cosines are multiplied by in the loss: 1 / temperature."""
        ...


class PairPlan(Protocol):
    """What a recipe's attribute ``training`` says where it is trained on pairs. Its networks have
    the parts ``encoder``, which is frozen, and ``head``, which is trained."""

    options: type[PairOptions]

    def new_config(self, options: Any, training: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of a new checkpoint."""
        ...

    def pretrained(self) -> Mapping[str, Tensor]:
        """Every tensor of ``encoder``, by its name there."""
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
    """Whether a recipe is trained on pairs, by `fit_pairs`."""
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
) -> PairReport:
    """Train ``recipe`` on the pairs of ``train``: lines of {"id", "img", "captions"} or {"id",
    "img", "text"}. Keeps the epoch with the best mean of all recalls on ``val``. ``features``: a
    folder that keeps what the frozen part makes of images and texts; by default in ``out``.

    The same files, options, seed and number of threads give the same figures. Raises DataError (a
    file without two usable images; any bad line if ``strict``), SettingsError (options), or
    TrainingError (a loss that is no longer a number, weights that are missing, ``resume``: with its
    features kept, such a run takes a minute from the beginning).
    """
    if resume:
        raise TrainingError(
            "a run on pairs is not resumed: without --resume it is done in a minute"
        )
    start = time.monotonic()
    plan: PairPlan = recipe.training  # type: ignore[attr-defined]
    chosen = parse_options(plan.options, options or {})
    pretrained = plan.pretrained()
    facts: dict[str, Any] = {
        "options": chosen.said(),
        "seed": seed,
        "train_sha256": file_sha256(train),
        "val_sha256": file_sha256(val),
        "pretrained_sha256": digest_of(pretrained),
    }
    config = plan.new_config(chosen, facts)
    torch.manual_seed(seed)
    network = recipe.build(config)
    frozen, head = network.get_submodule("encoder"), network.get_submodule("head")
    load_into(frozen, pretrained, recipe.spec.family)
    frozen.eval().requires_grad_(False)
    image, tokenizer = read_serving(recipe, config)
    reader = Reader(
        _as_encoders(frozen),
        facts["pretrained_sha256"],
        image,
        tokenizer,
        features or out / "features",
        progress and (lambda done, total: progress(Progress("encode", done, total))),
    )
    data = reader.read(train)
    trained = frozenset(item.id for item in read_task_file(train, PairedItem).items)
    held_out = reader.read(val, without=trained)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / CONFIG, config)
    bad_lines = (*data.bad_lines, *held_out.bad_lines)
    if strict and bad_lines:
        raise DataError(f"{len(bad_lines)} bad line(s): {first_of(bad_lines)}")
    (out / BAD_LINES).unlink(missing_ok=True)
    if bad_lines:
        write_bad_lines(out / BAD_LINES, bad_lines)
    epochs = _train(network, head, data, held_out, chosen, seed, out, progress)
    best = max(epochs, key=lambda epoch: float(epoch["mean_recall"]))
    report = PairReport(
        out=out,
        metrics=Recalls({k: v for k, v in best.items() if k not in ("epoch", "train_loss")}),
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
    _write_json(out / METRICS, {**report.metrics.to_json(), **facts_of_run})
    return report


def _train(
    network: nn.Module,
    head: nn.Module,
    data: Pairs,
    held_out: Pairs,
    options: PairOptions,
    seed: int,
    out: Path,
    progress: OnProgress | None,
) -> list[dict[str, float]]:
    """Figures of every epoch; the weights of the best one are in ``out``."""
    batches = max(len(data.images) // options.batch_size, 1)
    texts = data.texts_of_images()
    turns = max(len(own) for own in texts)
    state = new_state(head, options, options.epochs * turns * batches)
    epochs: list[dict[str, float]] = []
    best, best_epoch = -1.0, 0
    for epoch in range(1, options.epochs + 1):
        if epoch - 1 - best_epoch >= options.patience:
            break
        random = np.random.default_rng((seed, epoch))
        loss = np.mean([_turn(state, data, texts, options, random) for _ in range(turns)])
        figures = _recalls(_as_projections(state.average.module), held_out)
        mean = float(np.mean(list(figures.values())))
        figures |= {"train_loss": float(loss), "mean_recall": mean}
        epochs.append({"epoch": epoch, **figures})
        if mean > best:
            best, best_epoch = mean, epoch
            trained = {f"head.{name}": x for name, x in state.average.module.state_dict().items()}
            save_weights(out / WEIGHTS, {**network.state_dict(), **trained})
        if progress:
            progress(Progress("train", epoch, options.epochs, figures))
    return epochs


def _turn(
    state: TrainState,
    data: Pairs,
    texts: list[Any],
    options: PairOptions,
    random: np.random.Generator,
) -> float:
    """Every image once, in whole batches, each with one of its texts; the mean loss."""
    state.network.train()
    head = _as_projections(state.network)
    order = random.permutation(len(data.images))
    size = min(options.batch_size, len(order))
    losses = []
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        own = [random.choice(texts[row]) for row in rows]
        images, words = torch.from_numpy(data.images[rows]), torch.from_numpy(data.texts[own])
        loss = in_batch_contrast(
            head.images(_dropped(images, options.dropout, random)),
            head.texts(_dropped(words, options.dropout, random)),
            head.scale(),
            options.label_smoothing,
        )
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is no longer a number: lower learning_rate, {options.learning_rate}"
            )
        state.step(loss)
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


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


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
