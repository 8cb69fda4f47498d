"""One epoch over the training items, or the optimum on them; the scores of a network on others."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS

from vlserve.errors import TrainingError
from vlserve.training.augment import Augmentation
from vlserve.training.dataset import Dataset
from vlserve.training.options import TrainOptions
from vlserve.training.samples import TrainingSamples, batches, run_by_name
from vlserve.training.state import TrainState

SCORE_BATCH = 32
MAX_STEPS, TOLERANCE = 500, 1e-5
"""Of L-BFGS: it ends when the largest part of the gradient is as small."""
CONVERGED = 2e-4
"""Where that is the optimum: float32 ends searches at up to 7e-5."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """Where the search ended: the loss, and the largest part of its gradient."""

    loss: float
    gradient: float

    @property
    def converged(self) -> bool:
        return self.gradient <= CONVERGED


def make_loss(
    *, multi_label: bool, label_smoothing: float, class_weights: Tensor | None = None
) -> Loss:
    """(batch, labels) logits and 0-1 targets -> mean loss: cross-entropy, weighted by
    ``class_weights`` (labels,), or binary cross-entropy of each label when items have several."""

    def single(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, targets.argmax(dim=1), class_weights, label_smoothing=label_smoothing
        )

    def several(logits: Tensor, targets: Tensor) -> Tensor:
        soft = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, soft)

    return several if multi_label else single


def class_weights(targets: NDArray[np.int64], power: float) -> Tensor:
    """(items, labels) of 0 and 1, one 1 an item -> (labels,) weights n^-power, n items of a label,
    scaled so that the items' mean weight is 1. Every label has an item."""
    items = targets.sum(axis=0)
    weights = items.astype(np.float64) ** -power
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


def train_epoch(
    state: TrainState, loss_of: Loss, data: Dataset, options: TrainOptions, seed: int
) -> float:
    """Mean loss of one epoch; everything random in it follows from ``seed``. Raises TrainingError
    when the loss is no longer a number."""
    generator = torch.Generator().manual_seed(seed)
    text = data.tokenizer.spec
    framed = text.tokenizer == "wordpiece"
    augmentation = (
        Augmentation(data.image, text.unknown_id, generator, framed) if options.augment else None
    )
    whole_batches = steps_per_epoch(len(data.train), options.batch_size) * options.batch_size
    order = torch.randperm(len(data.train), generator=generator)[:whole_batches].tolist()
    total = 0.0
    state.network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        for inputs, targets in batches(data.train, order, options.batch_size, augmentation):
            loss = loss_of(run_by_name(state.network, inputs), targets)
            if not torch.isfinite(loss):
                raise TrainingError(
                    "the loss is no longer a number: train with a lower learning_rate than "
                    f"{options.learning_rate}"
                )
            state.step(loss)
            total += float(loss.detach()) * len(targets)
    return total / len(order)


def solve(network: nn.Module, loss_of: Loss, samples: TrainingSamples, penalty: float) -> Solution:
    """Find the weights with the lowest mean loss + ``penalty`` / items x half the squares of all
    weights but biases, of a network that is linear in its weights. All items are in memory at once.
    A search that ends before the optimum has not ``converged``. Raises TrainingError when the loss
    is no longer a number."""
    inputs, targets = next(iter(batches(samples, range(len(samples)), len(samples))))
    squared = [weight for weight in network.parameters() if weight.ndim > 1]
    optimizer = LBFGS(
        network.parameters(),
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def total() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([weight.square().sum() for weight in squared]).sum()
        loss = loss_of(run_by_name(network, inputs), targets)
        loss = loss + penalty / len(samples) * squares / 2
        torch.autograd.backward(loss)
        return loss

    network.train()
    optimizer.step(total)  # type: ignore[no-untyped-call]
    loss = float(total().detach())
    if not math.isfinite(loss):
        raise TrainingError(
            "the loss is no longer a number: train with a higher penalty than "
            f"{penalty}, on items whose features are finite"
        )
    parts = [weight.grad.abs().max() for weight in network.parameters() if weight.grad is not None]
    return Solution(loss, float(torch.stack(parts).max()))


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Full batches; fewer items than one batch make a batch of their own."""
    return max(items // batch_size, 1)


@torch.no_grad()
def score(
    network: nn.Module, samples: TrainingSamples, *, multi_label: bool
) -> NDArray[np.float64]:
    """(items, labels) probabilities."""
    network.eval()
    rows = []
    for inputs, _ in batches(samples, range(len(samples)), SCORE_BATCH):
        logits = run_by_name(network, inputs).double()
        rows.append(logits.sigmoid() if multi_label else logits.softmax(dim=1))
    return np.asarray(torch.cat(rows).numpy())
