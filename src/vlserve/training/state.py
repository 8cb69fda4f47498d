"""Everything that changes while a network is trained, and its file: safetensors with a JSON header,
nothing pickled."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vlserve.errors import TrainingError
from vlserve.training.options import TrainOptions

AVERAGE_DECAY = 0.99
MAX_GRADIENT_NORM = 1.0
CHANNELS_LAST_FROM = 16
"""Channels. The faster memory layout crashes torch 2.13's CPU backward (oneDNN) of a strided 1x1
convolution with 8 channels or fewer."""


@dataclass(frozen=True)
class TrainState:
    """``average`` follows the network as an exponential moving average, which on small data
    validates better and more evenly than the network of the last step; it is what is kept."""

    network: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    scheduler: LRScheduler

    def step(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.network)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def new_state(network: nn.Module, options: TrainOptions, steps: int) -> TrainState:
    """AdamW, without decay on biases and norms; the rate warms up, then falls as a cosine until
    ``steps`` are done."""
    if _narrowest_jump(network) >= CHANNELS_LAST_FROM:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed: dict[str, Any] = {"params": [w for w in network.parameters() if w.ndim > 1]}
    others = {"params": [w for w in network.parameters() if w.ndim <= 1], "weight_decay": 0.0}
    optimizer = AdamW(
        [decayed, others],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    warm_up = max(round(steps * options.warm_up), 1)
    scheduler = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=0.01, total_iters=warm_up),
            CosineAnnealingLR(optimizer, T_max=max(steps - warm_up, 1)),
        ],
        milestones=[warm_up],
    )
    average = AveragedModel(network, multi_avg_fn=_follow, use_buffers=True)
    return TrainState(network, average, optimizer, scheduler)


def _narrowest_jump(network: nn.Module) -> int:
    """Channels of the narrowest strided 1x1 convolution; 0 where there is none."""
    return min(
        (
            conv.in_channels
            for conv in network.modules()
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
        ),
        default=0,
    )


def _follow(averages: Any, weights: Any, updates: Any) -> None:
    """A moving average that looks less far back in the first steps, else it would hold on to the
    random start."""
    decay = min(AVERAGE_DECAY, (1 + int(updates)) / (10 + int(updates)))
    get_ema_multi_avg_fn(decay)(averages, weights, updates)  # type: ignore[no-untyped-call]


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors by name alone; ``path`` appears whole."""
    _save(path, tensors, {})


def save_state(path: Path, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Write what `load_state` needs, and ``facts`` (JSON-ready) with it."""
    optimizer = state.optimizer.state_dict()
    tensors = {
        **{f"network.{name}": value for name, value in state.network.state_dict().items()},
        **{f"average.{name}": value for name, value in state.average.state_dict().items()},
        **{
            f"optimizer.{index}.{name}": value
            for index, values in optimizer["state"].items()
            for name, value in values.items()
        },
    }
    header = {
        "param_groups": optimizer["param_groups"],
        "scheduler": state.scheduler.state_dict(),
        "facts": dict(facts),
    }
    _save(path, tensors, {"state": json.dumps(header)})


def load_facts(path: Path) -> dict[str, Any]:
    """The facts of a file of `save_state`, without its tensors. TrainingError if it is not one."""
    facts: dict[str, Any] = _read_header(path)["facts"]
    return facts


def load_state(path: Path, state: TrainState) -> None:
    """Put a saved state into one of the same network and options."""
    header = _read_header(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state.network.load_state_dict(_below("network.", tensors))
    state.average.load_state_dict(_below("average.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    state.optimizer.load_state_dict({"state": moments, "param_groups": header["param_groups"]})
    state.scheduler.load_state_dict(header["scheduler"])


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, partial, metadata=metadata)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise _as_os_error(error, path) from error
    partial.replace(path)


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """Return what the system said, which safetensors tells as a text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path} cannot be written: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not the state of a training run: {error!r}") from error
    return header


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
