"""How taggers learn: by steps over the training items, or the optimum on them; their scores."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS

from vlserve.errors import TrainingError
from vlserve.training.dataset import Dataset
from vlserve.training.distributed import over_ranks
from vlserve.training.metrics.tagging import Metrics, measure
from vlserve.training.metrics.vqa import is_any_of
from vlserve.training.objectives.classify import binary_focal, focal
from vlserve.training.options import TrainOptions
from vlserve.training.plan import Parts
from vlserve.training.run import epoch_seed
from vlserve.training.samples import TrainingSamples, batches, run_by_name, taken_by
from vlserve.training.tagger_augmentation import Augmentation

SCORE_BATCH = 32
MAX_STEPS, TOLERANCE = 500, 1e-5
"""Of L-BFGS: it ends when the largest part of the gradient is as small."""
CONVERGED = 2e-4
"""Where that is the optimum: float32 ends searches at up to 7e-5."""

Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Linear(Protocol):
    """A network whose ``forward`` is ``logits(**constants(**inputs))``."""

    def constants(self, *args: Tensor, **inputs: Tensor) -> Mapping[str, Tensor]:
        """Return by name what of the inputs no weight changes, items first."""
        ...

    def logits(self, *args: Tensor, **constants: Tensor) -> Tensor:
        """Return logits (items, labels)."""
        ...


TagBatch = tuple[dict[str, Tensor], Tensor]
"""Inputs by name, and targets (batch, labels)."""


@dataclass(frozen=True)
class Solution:
    """Where the search ended: the loss, and the largest part of its gradient."""

    loss: float
    gradient: float

    @property
    def converged(self) -> bool:
        return self.gradient <= CONVERGED


def make_loss(
    *,
    multi_label: bool,
    label_smoothing: float,
    class_weights: Tensor | None = None,
    gamma: float = 0.0,
    summed: bool = False,
) -> Loss:
    """Make the mean loss of logits and 0-1 targets (batch, labels): cross-entropy, weighted by
    ``class_weights`` (labels,), or binary cross-entropy of each label when items have several;
    with ``gamma`` above 0 focal loss, which knows neither weights nor smoothing. ``summed``: the
    sum of an item's labels where it has several, not their mean."""

    def single(logits: Tensor, targets: Tensor) -> Tensor:
        if gamma:
            return focal(logits, targets.argmax(dim=1), gamma)
        return F.cross_entropy(
            logits, targets.argmax(dim=1), class_weights, label_smoothing=label_smoothing
        )

    def several(logits: Tensor, targets: Tensor) -> Tensor:
        if gamma:
            loss = binary_focal(logits, targets.to(logits.dtype), gamma)
        else:
            soft = targets * (1 - label_smoothing) + label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, soft)
        return loss * targets.shape[1] if summed else loss

    return several if multi_label else single


def class_weights(targets: NDArray[np.int64], power: float) -> Tensor:
    """Return weights (labels,) of targets (items, labels), one 1 an item: n^-power, n items of a
    label, scaled so that the items' mean weight is 1; without any as if it had one."""
    items = targets.sum(axis=0)
    weights = items.clip(min=1).astype(np.float64) ** -power
    return torch.from_numpy(weights * items.sum() / (weights @ items)).float()


def add_dropout(network: nn.Module, share: float) -> None:
    """Drop ``share`` of embeddings and of the inputs of linear layers, in training mode alone.
    Hooks, so that the network keeps the parameters of its checkpoints."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(
                lambda self, _, output: F.dropout(output, share, self.training)
            )
        elif isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda self, inputs: (F.dropout(inputs[0], share, self.training),)
            )


@dataclass(frozen=True)
class TagJob:
    """Taggers: see `vlserve.training.run.Job`. ``parts`` says what of the network learns."""

    parts: Parts
    data: Dataset
    options: TrainOptions

    @property
    def trained(self) -> nn.Module:
        return self.parts.trained

    @property
    def steps(self) -> int:
        return steps_per_epoch(len(self.data.train), self.options.batch_size)

    @property
    def chosen_by(self) -> str:
        if self.data.answers:
            return "accuracy"
        return "map" if self.data.multi_label else "macro_f1"

    def batches(self, seed: int, epoch: int) -> Iterator[TagBatch]:
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        text, size = self.data.tokenizer.spec, self.options.batch_size
        framed = text.tokenizer == "wordpiece"
        augmentation = (
            Augmentation(self.data.image, text.unknown_id, generator, framed)
            if self.options.augment
            else None
        )
        order = torch.randperm(len(self.data.train), generator=generator)[: self.steps * size]
        yield from batches(self.data.train, order.tolist(), size, augmentation)

    def losses(self, network: nn.Module, batch: TagBatch) -> dict[str, Tensor]:
        inputs, targets = batch
        return {"tags": self.loss(run_by_name(network, inputs).float(), targets)}

    @cached_property
    def loss(self) -> Loss:
        """The loss of logits, by what the options say."""
        power, several = self.options.class_weight_power, self.data.multi_label
        weights = class_weights(self.data.train.targets, power) if power and not several else None
        return make_loss(
            multi_label=several,
            label_smoothing=self.options.label_smoothing,
            class_weights=weights,
            gamma=self.options.focal_gamma,
            summed=self.options.convex,  # else the penalty would grow with the number of labels
        )

    def figures(self, network: nn.Module) -> dict[str, float]:
        metrics, _ = measure_tags(network, self.data)
        return {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "map": metrics.map}

    def checkpoint(self, network: nn.Module) -> dict[str, Tensor]:
        return self.parts.checkpoint(network)


def measure_tags(
    network: nn.Module, data: Dataset, resamples: int = 0
) -> tuple[Metrics, NDArray[np.float64]]:
    """Return figures and scores of the validation items; ``resamples`` > 0: with intervals, from so
    many bootstrap draws."""
    scores = score(network, data.val, multi_label=data.multi_label)
    figures = measure(
        data.val.targets,
        scores,
        multi_label=data.multi_label,
        right=_answered(data.config["labels"], data.val_labels, scores) if data.answers else None,
        resamples=resamples,
    )
    return figures, scores


def _answered(
    labels: Sequence[str], answers: Sequence[Sequence[str]], scores: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return of which items the best label is one of their answers, as `vlserve evaluate` has it;
    ``answers``: of each item, also those that are no label."""
    best = scores.argmax(axis=1)
    right = [is_any_of(labels[place], own) for place, own in zip(best, answers, strict=True)]
    return np.array(right, dtype=np.bool_)


def solve(network: nn.Module, loss_of: Loss, samples: TrainingSamples, penalty: float) -> Solution:
    """Find the weights with the lowest mean loss + ``penalty`` / items x half the squares of all
    weights but biases, of a network that is linear in its weights. All items are in memory at once,
    as what its ``constants`` make of them where it is a `Linear`. A search that ends before the
    optimum has not ``converged``. Raises TrainingError when the loss is no longer a number."""
    network.train()
    logits_of, targets = _logits_by_weights(network, samples)
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    optimizer = LBFGS(
        network.parameters(),
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def total() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        loss = loss_of(logits_of(), targets)
        loss = loss + penalty / len(samples) * squares / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(total)  # type: ignore[no-untyped-call]
    loss = float(total().detach())
    if not math.isfinite(loss):
        raise TrainingError(
            "the loss is no longer a number: train with a higher penalty than "
            f"{penalty}, on items whose features are finite"
        )
    parts = [weight.grad.abs().max() for weight in network.parameters() if weight.grad is not None]
    return Solution(loss, float(torch.stack(parts).max()))


def _logits_by_weights(
    network: nn.Module, samples: TrainingSamples
) -> tuple[Callable[[], Tensor], Tensor]:
    """Return what gives the logits of all samples by the weights of the moment, and the targets."""
    everything = range(len(samples))
    if not isinstance(network, Linear):
        inputs, targets = next(iter(batches(samples, everything, len(samples))))
        return partial(run_by_name, network, inputs), targets
    parts: list[Mapping[str, Tensor]] = []
    targets_of: list[Tensor] = []
    with torch.no_grad():
        for inputs, targets in batches(samples, everything, SCORE_BATCH):
            names = taken_by(network, inputs)
            parts.append(network.constants(**{name: inputs[name] for name in names}))
            targets_of.append(targets)
    constants = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return partial(network.logits, **constants), torch.cat(targets_of)


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Return how many full batches there are; fewer items than one batch make a batch of their
    own."""
    return max(items // batch_size, 1)


@torch.no_grad()
def score(
    network: nn.Module, samples: TrainingSamples, *, multi_label: bool
) -> NDArray[np.float64]:
    """Return probabilities (items, labels)."""
    network.eval()

    def of_batch(start: int) -> Tensor:
        rows = range(start, min(start + SCORE_BATCH, len(samples)))
        (inputs, _), *_ = batches(samples, rows, SCORE_BATCH)
        logits: Tensor = run_by_name(network, inputs).double()
        return logits.sigmoid() if multi_label else logits.softmax(dim=1)

    parts = over_ranks(range(0, len(samples), SCORE_BATCH), of_batch)
    return np.asarray(torch.cat(parts).numpy())
