"""Everything that changes while a network is trained, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vlserve.training.distributed import gathered, is_first, rank, size
from vlserve.training.optimisers import needs_second_order, new_optimiser, new_schedule
from vlserve.training.options import TrainOptions
from vlserve.training.state_file import (
    flatten,
    random_state,
    read_header,
    read_tensors,
    restore,
    write_tensors,
)

CHANNELS_LAST_FROM = 16
"""Channels. The faster memory layout crashes torch 2.13's CPU backward (oneDNN) of a strided 1x1
convolution with 8 channels or fewer."""


@dataclass
class TrainState:
    """``average`` follows the network as an exponential moving average, which on small data
    validates better and more evenly than the network of the last step; it is what is kept."""

    network: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau
    accumulate: int = 1
    clip: float = 1.0
    second_order: bool = False
    backwards: int = 0
    """Since the last step of the optimizer."""
    random: Tensor = field(default_factory=random_state)
    """Of torch's global generator, where the state was saved."""

    def step(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``; every ``accumulate`` times, step down their mean."""
        if self.backwards == 0:
            self.optimizer.zero_grad()
        share = loss / self.accumulate if self.accumulate > 1 else loss
        if self.second_order:
            self._keep_graph(share)
        else:
            share.backward()  # type: ignore[no-untyped-call]
        self.backwards += 1
        if self.backwards < self.accumulate:
            return
        self.backwards = 0
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        if self.second_order:
            self.optimizer.zero_grad()  # gradients hold their graph
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.average.update_parameters(self.network)

    def _keep_graph(self, loss: Tensor) -> None:
        """Add gradients that can be differentiated again."""
        parameters = [x for x in self.network.parameters() if x.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient + (0 if parameter.grad is None else parameter.grad)

    def end_epoch(self, figure: float) -> None:
        """Tell the schedule what a plateau is judged by. Gradients that wait for more wait on."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(figure)

    def restore_random(self) -> None:
        """Put torch's global generator where it was when the state was saved."""
        torch.set_rng_state(self.random)

    @property
    def learning_rate(self) -> float:
        """Of the group that learns fastest."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)


def new_state(network: nn.Module, options: TrainOptions, steps: int) -> TrainState:
    """Return the state before the first of ``steps`` batches, by the options' optimiser and
    schedule."""
    if _narrowest_jump(network) >= CHANNELS_LAST_FROM:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = new_optimiser(network, options)
    return TrainState(
        network=network,
        average=AveragedModel(
            network, multi_avg_fn=_following(options.average_decay), use_buffers=True
        ),
        optimizer=optimizer,
        scheduler=new_schedule(optimizer, options, max(steps // options.accumulate, 1)),
        accumulate=options.accumulate,
        clip=options.clip,
        second_order=needs_second_order(options),
    )


def _narrowest_jump(network: nn.Module) -> int:
    """Return channels of the narrowest strided 1x1 convolution; 0 where there is none."""
    return min(
        (
            conv.in_channels
            for conv in network.modules()
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
        ),
        default=0,
    )


def _following(decay: float) -> Any:
    """Make a moving average that looks less far back in the first steps, else it would hold on to
    the random start."""

    def follow(averages: Any, weights: Any, updates: Any) -> None:
        now = min(decay, (1 + int(updates)) / (10 + int(updates)))
        get_ema_multi_avg_fn(now)(averages, weights, updates)  # type: ignore[no-untyped-call]

    return follow


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save tensors by name alone; ``path`` appears whole."""
    write_tensors(path, tensors, {})


def save_state(path: Path, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Write what `load_state` needs, and ``facts`` (JSON-ready) with it. All processes of a run
    call it, and the first one writes."""
    generators = gathered(random_state().unsqueeze(0))
    gradients = _waiting_gradients(state)
    if not is_first():
        return
    tensors = {
        **{f"network.{name}": value for name, value in state.network.state_dict().items()},
        **{f"average.{name}": value for name, value in state.average.state_dict().items()},
        **{_random(number): state for number, state in enumerate(generators)},
    }
    moments: dict[str, Tensor] = {}
    optimizer = flatten(state.optimizer.state_dict(), "optimizer.", moments)
    header = {
        "optimizer": optimizer,
        "scheduler": state.scheduler.state_dict(),
        "backwards": state.backwards,
        "ranks": size(),
        "facts": dict(facts),
    }
    write_tensors(path, tensors | gradients | moments, {"state": json.dumps(header)})


def _waiting_gradients(state: TrainState) -> dict[str, Tensor]:
    """Return what waits for more, by its names in the file: between steps of the optimizer every
    process has gradients of its own. All of them call it; the first one gets what it writes."""
    if not state.backwards:
        return {}
    parameters = dict(state.network.named_parameters())
    there = [[x.grad is not None for x in parameters.values()]]
    has = gathered(torch.tensor(there, dtype=torch.uint8)).bool()  # (ranks, parameters)
    gradients = {}
    for place, (name, parameter) in enumerate(parameters.items()):
        if not has[:, place].any():
            continue
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for number, gradient in enumerate(gathered(own.unsqueeze(0))):
            if is_first() and has[number, place]:
                gradients[f"{_gradient(number)}{name}"] = gradient
    return gradients


def _gradient(number: int) -> str:
    """Return what names of gradients of the process ``number`` begin with."""
    return f"gradient{number or ''}."


def _random(number: int) -> str:
    """Return the name of the generator of the process ``number``."""
    return f"random.{number}" if number else "random"


def load_facts(path: Path) -> dict[str, Any]:
    """Return the facts of a file of `save_state`, without its tensors. TrainingError if it is not
    one."""
    facts: dict[str, Any] = read_header(path)["facts"]
    return facts


def load_state(path: Path, state: TrainState) -> None:
    """Put a saved state into one of the same network and options."""
    header, tensors = read_header(path), read_tensors(path)
    state.network.load_state_dict(_below("network.", tensors))
    state.average.load_state_dict(_below("average.", tensors))
    if "optimizer" in header:
        state.optimizer.load_state_dict(restore(header["optimizer"], tensors))
    else:
        state.optimizer.load_state_dict(_as_before(header, tensors))
    state.scheduler.load_state_dict(header["scheduler"])
    state.backwards = header.get("backwards", 0)
    state.random = tensors.get(_random(rank()), state.random)
    number = rank() if rank() < header.get("ranks", 1) else 0  # earlier versions kept the first's
    for name, gradient in _below(_gradient(number), tensors).items():
        state.network.get_parameter(name).grad = gradient


def _as_before(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the optimizer's state as earlier versions kept it: names
    ``optimizer.<index>.<moment>``."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    return {"state": moments, "param_groups": header["param_groups"]}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
