"""Golden cases of torchvision's ResNet: their sizes, and the weights of those that store none."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.golden_cases import Case, key_shapes


def described(case: Case) -> tuple[dict[str, Any], int]:
    """A case's ResNetConfig and number of classes, from its hyperparameters or its class."""
    hyperparameters = case.config.get("hyperparameters", {})
    blocks = re.search(r"ResNet\((\w+), *\[([\d, ]+)\]", case.config["source"]["class"])
    block = hyperparameters.get("block") or (blocks and blocks[1])
    layers = hyperparameters.get("layers") or (blocks and [int(n) for n in blocks[2].split(",")])
    classes = re.search(r"num_classes=(\d+)", case.config["source"]["class"])
    count = hyperparameters.get("num_classes") or (int(classes[1]) if classes else 1000)
    width = 64 // hyperparameters.get("width_divisor", 1)
    return {"block": block, "layers": layers, "width": width}, count


def by_formula(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a case that stores none: config.json's weights_formula, with its numbers."""
    formula = case.config["weights_formula"]
    number = r"([\d.]+)"
    a, b = _numbers(rf"sin\({number}\*j\+{number}\*k\)", formula)
    (variance,) = _numbers(rf"running_var: 1\+{number}\*s", formula)
    (mean,) = _numbers(rf"running_mean: {number}\*s", formula)
    scale, shift = _numbers(rf"weight -> 1\+{number}\*s, else {number}\*s", formula)
    (gain,) = _numbers(rf"s\*sqrt\({number}/numel", formula)
    key = re.search(r"keys/([\w.-]+)\.json", formula)
    assert key is not None
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(key_shapes(key[1]).items()) == list(shapes.items())
    weights = {}
    for k, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        s = np.sin(a * np.arange(size, dtype=np.float64) + b * k)
        if name.endswith("num_batches_tracked"):
            values = np.zeros(size)
        elif name.endswith("running_var"):
            values = 1 + variance * s
        elif name.endswith("running_mean"):
            values = mean * s
        elif len(shape) >= 2:
            values = s * np.sqrt(gain / (size / shape[0]))
        else:
            values = 1 + scale * s if name.endswith("weight") else shift * s
        weights[name] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
    return weights


def _numbers(pattern: str, formula: str) -> list[float]:
    match = re.search(pattern, formula)
    assert match is not None, f"weights_formula has no {pattern}: {formula}"
    return [float(value) for value in match.groups()]


def golden_weights(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    arrays = case.arrays("state_dict")
    if not arrays:
        return by_formula(case, network)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
