"""Optimisers and schedules by name: an allow-list over kept packages, none of them copied.

What is not listed is refused: two optimisers of pytorch-optimizer (Fromage, Nero) may not be used
commercially.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from vlserve.errors import ExtraMissing, SettingsError
from vlserve.extras import missing_extra

if TYPE_CHECKING:
    from vlserve.training.options import TrainOptions

OptimiserName = Literal[
    "adamw",
    "adafactor",
    "radam",
    "rmsprop",
    "sgd",
    "adamp",
    "sgdp",
    "novograd",
    "adahessian",
    "lookahead",
]
ScheduleName = Literal[
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "linear",
    "constant",
    "step",
    "plateau",
    "tanh",
    "inverse_sqrt",
]
"""inverse_sqrt: Vaswani et al., Attention Is All You Need (arXiv:1706.03762); its highest rate is
that after the warm-up."""
MOMENTUM = 0.9
"""Of sgd, sgdp and rmsprop."""
WARM_UP_FROM = 0.01
"""The share of the rate that a warm-up begins with."""
PLATEAU_FACTOR, STEP_FACTOR = 0.5, 0.1
TANH_BOUNDS = (-6.0, 3.0)
"""Hsueh et al., Stochastic Gradient Descent with Hyperbolic-Tangent Decay (arXiv:1806.01593)."""
NOISE_SEED = 42
"""timm's; a step draws from it and its own number."""
AROUND = re.compile(r"^(?:(?:network|student)\.)+")
LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks|[cv]_layer)\.(\d+)\.")
"""The number of a layer in a parameter's name."""
FIRST = re.compile(r"(embeddings|patch_embed|cls_token|pos_embed|word_emb|pos_emb)")
"""Parameters that stand before the first layer."""

_TORCH: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": optim.AdamW,
    "adafactor": optim.Adafactor,
    "radam": lambda groups, **more: optim.RAdam(groups, decoupled_weight_decay=True, **more),
    "rmsprop": lambda groups, **more: optim.RMSprop(groups, momentum=MOMENTUM, **more),
    "sgd": lambda groups, **more: optim.SGD(groups, momentum=MOMENTUM, **more),
}


def new_optimiser(network: nn.Module, options: "TrainOptions") -> Optimizer:
    """The optimiser that the options name, over what of the network learns; without decay on
    biases and norms. SettingsError where nothing learns,
    ExtraMissing where its package is not installed."""
    groups = parameter_groups(network, options)
    more: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimiser in _TORCH:
        return _TORCH[options.optimiser](groups, **more)
    try:
        import pytorch_optimizer as library
    except ImportError as error:
        raise ExtraMissing(missing_extra("train", "pytorch-optimizer")) from error
    if options.optimiser == "lookahead":
        return library.Lookahead(optim.AdamW(groups, **more))
    if options.optimiser == "sgdp":
        return library.SGDP(groups, momentum=MOMENTUM, **more)
    kind = {"adamp": library.AdamP, "novograd": library.NovoGrad, "adahessian": library.AdaHessian}
    optimiser: Optimizer = kind[options.optimiser](groups, **more)
    return optimiser


def needs_second_order(options: "TrainOptions") -> bool:
    """Whether a step needs the graph of the gradient."""
    return options.optimiser == "adahessian"


def parameter_groups(network: nn.Module, options: "TrainOptions") -> list[dict[str, Any]]:
    """Parameters by decay and rate. Those whose name begins with a part of ``freeze`` no longer
    learn; with ``layer_decay`` below 1, a layer's rate is that of the one above it times
    ``layer_decay``. SettingsError for a part that the network lacks."""
    freeze(network, options.freeze)
    trainable = {own_name(name): x for name, x in network.named_parameters() if x.requires_grad}
    if not trainable:
        raise SettingsError(f"freeze: nothing is left to learn beside {', '.join(options.freeze)}")
    if options.layer_decay == 1:
        return [
            {"params": [x for x in trainable.values() if x.ndim > 1]},
            {"params": [x for x in trainable.values() if x.ndim <= 1], "weight_decay": 0.0},
        ]
    depths = layer_depths(list(trainable))
    by_kind: dict[tuple[int, bool], list[Any]] = {}
    for name, parameter in trainable.items():
        by_kind.setdefault((depths[name], parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.learning_rate * options.layer_decay**depth,
            **({} if decayed else {"weight_decay": 0.0}),
        }
        for (depth, decayed), parameters in sorted(by_kind.items(), key=lambda item: item[0])
    ]


def freeze(network: nn.Module, parts: tuple[str, ...]) -> None:
    """Stop the named parts (``visual_encoder``, ``text_encoder.embeddings``) from learning."""
    parameters = {own_name(name): x for name, x in network.named_parameters()}
    for part in map(own_name, parts):
        inside = [name for name in parameters if name == part or name.startswith(f"{part}.")]
        if not inside:
            learning = [name for name, x in parameters.items() if x.requires_grad]
            choices = ", ".join(dict.fromkeys(name.partition(".")[0] for name in learning))
            raise SettingsError(f"freeze: the network has no part {part}; it has {choices}")
        for name in inside:
            parameters[name].requires_grad_(False)


def own_name(name: str) -> str:
    """Return how the network itself calls a parameter: what learns around it, with a teacher or
    another head, holds it as ``network`` or ``student``."""
    return AROUND.sub("", name)


def layer_depths(names: list[str]) -> dict[str, int]:
    """How many layers of its own part stand above each parameter: 0 for heads, 1 for the last
    layer, and embeddings below the first."""
    layers: dict[str, int] = {}
    for name in names:
        if number := LAYER.search(name):
            part = name[: number.start()]
            layers[part] = max(layers.get(part, 0), int(number[1]) + 1)
    depths = {}
    for name in names:
        number = LAYER.search(name)
        if number:
            depths[name] = layers[name[: number.start()]] - int(number[1])
        else:
            above = [count for part, count in layers.items() if _beside(name, part)]
            depths[name] = max(above, default=0) + 1 if FIRST.search(name) and above else 0
    return depths


def _beside(name: str, part: str) -> bool:
    """Whether a parameter belongs to the same part of the network as some layers."""
    return not part or name.partition(".")[0] == part.partition(".")[0]


def new_schedule(
    optimiser: Optimizer, options: "TrainOptions", steps: int
) -> LRScheduler | ReduceLROnPlateau:
    """The schedule that the options name, of a run of ``steps`` steps: the rate warms up over the
    first of them. Stepped each step, but ``plateau`` each epoch."""
    warm_up = max(round(steps * options.warm_up), 1)
    name = options.schedule
    if options.rate_noise:
        return _noisy(optimiser, options, warm_up, steps)
    if name == "plateau":
        return ReduceLROnPlateau(
            optimiser, mode="max", factor=PLATEAU_FACTOR, patience=options.step_epochs
        )
    if name in ("cosine", "step"):
        each = max(steps * options.step_epochs // options.epochs, 1)
        after: LRScheduler = (
            StepLR(optimiser, step_size=each, gamma=STEP_FACTOR)
            if name == "step"
            else CosineAnnealingLR(
                optimiser, T_max=max(steps - warm_up, 1), eta_min=options.lowest_rate
            )
        )
        before = LinearLR(optimiser, start_factor=WARM_UP_FROM, total_iters=warm_up)
        return SequentialLR(optimiser, [before, after], milestones=[warm_up])
    if name == "tanh":
        return LambdaLR(optimiser, lambda step: _tanh(step, warm_up, steps))
    return _of_transformers(optimiser, options, warm_up, steps)


def _noisy(optimiser: Optimizer, options: "TrainOptions", warm_up: int, steps: int) -> LambdaLR:
    """The schedule's rate times 1 + a number drawn each step from a normal distribution that is
    cut at ``rate_noise`` either way: timm's (huggingface/pytorch-image-models,
    timm/scheduler/scheduler.py, ``_add_noise``, with ``noise_std`` 1). The same number in a run
    that is resumed. SettingsError for a schedule that follows figures."""
    plain = _factors(optimiser, options, warm_up, steps)
    return LambdaLR(optimiser, lambda step: plain(step) * (1 + _noise(step, options.rate_noise)))


def _noise(step: int, limit: float) -> float:
    """A number of the standard normal distribution, cut at ``limit`` either way."""
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-limit), ndtr(limit)
    share = np.random.default_rng((NOISE_SEED, step)).random()
    return float(ndtri(low + share * (high - low)))


def _factors(
    optimiser: Optimizer, options: "TrainOptions", warm_up: int, steps: int
) -> Callable[[int], float]:
    """What a schedule multiplies the rate with at each step."""
    name, each = options.schedule, max(steps * options.step_epochs // options.epochs, 1)
    if name == "plateau":
        raise SettingsError("rate_noise: the schedule plateau follows figures, name another")
    if name == "tanh":
        return lambda step: _tanh(step, warm_up, steps)
    if name == "step":
        return lambda step: _warm(step, warm_up) * STEP_FACTOR ** (max(step - warm_up, 0) // each)
    if name == "cosine":
        floor = options.lowest_rate / options.learning_rate
        return lambda step: (
            _warm(step, warm_up)
            if step < warm_up
            else floor + (1 - floor) * (1 + math.cos(math.pi * _share(step, warm_up, steps))) / 2
        )
    lambdas: list[Callable[[int], float]] = _of_transformers(
        optimiser, options, warm_up, steps
    ).lr_lambdas
    return lambdas[0]


def _warm(step: int, warm_up: int) -> float:
    return min(1.0, WARM_UP_FROM + (1 - WARM_UP_FROM) * step / warm_up)


def _share(step: int, warm_up: int, steps: int) -> float:
    """How much of the steps after the warm-up is done."""
    return min(1.0, (step - warm_up) / max(steps - warm_up, 1))


def _of_transformers(
    optimiser: Optimizer, options: "TrainOptions", warm_up: int, steps: int
) -> LambdaLR:
    from transformers.optimization import get_scheduler

    names = {"constant": "constant_with_warmup"}
    more: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": options.cycles},
        "polynomial": {"lr_end": options.lowest_rate, "power": 2.0},
    }
    schedule: LambdaLR = get_scheduler(
        names.get(options.schedule, options.schedule),
        optimiser,
        num_warmup_steps=warm_up,
        num_training_steps=steps,
        scheduler_specific_kwargs=more.get(options.schedule),
    )
    return schedule


def _tanh(step: int, warm_up: int, steps: int) -> float:
    if step < warm_up:
        return _warm(step, warm_up)
    low, high = TANH_BOUNDS
    return (1 - math.tanh(low + (high - low) * _share(step, warm_up, steps))) / 2


OPTIMISERS: tuple[str, ...] = get_args(OptimiserName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
