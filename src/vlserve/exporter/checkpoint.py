"""Reads a checkpoint file without running any code that it may hold."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vlserve.errors import CheckpointMismatch
from vlserve.models.keys import check_keys, first_names

ALLOWED: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"},
    (np.empty(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
    (np.empty(0).__reduce__()[0], "numpy._core.multiarray._reconstruct"),
    (np.float32(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float32(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
"""What training scripts save beside the weights and is only data: their arguments, and numpy
arrays and scalars (metrics, random states), under the names of both numpy 1 and 2."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which of its keys a training script saved the weights."""


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Parameter name -> tensor on the CPU, from a safetensors or a torch file.

    Wrappers (``{"state_dict": …}``) and the ``module.`` prefix of parallel training are taken
    off. Raises CheckpointMismatch for a file that is neither, holds code, or holds no weights.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"no checkpoint {path}")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    state = _unwrap(content)
    if not state:
        raise CheckpointMismatch(f"{path} holds no weights: {_describe(content)}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_into(network: nn.Module, state: Mapping[str, torch.Tensor], family: str) -> None:
    """Strict load. Raises CheckpointMismatch naming missing, unexpected and misshapen keys."""
    expected = network.state_dict()
    optional = {name for name in expected if name.endswith(".num_batches_tracked")}
    check_keys(
        family,
        missing=[name for name in expected if name not in state and name not in optional],
        unexpected=[name for name in state if name not in expected],
    )
    shapes = [
        f"{name} is {tuple(tensor.shape)}, the network has {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != expected[name].shape
    ]
    if shapes:
        raise CheckpointMismatch(f"checkpoint does not fit its config: {first_names(shapes)}")
    network.load_state_dict({**{name: expected[name] for name in optional}, **state})


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of a JSON header, then its brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointMismatch(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    """``weights_only`` admits tensors, plain containers and ALLOWED; nothing else is built."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):
            warnings.simplefilter("ignore")  # remarks on old formats; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CheckpointMismatch(
                f"{path} was refused: reading it would run {forbidden[1]}. Save the network's "
                "state_dict() alone, or as safetensors"
            ) from error
        raise CheckpointMismatch(
            f"{path} is neither a safetensors nor a whole torch file ({type(error).__name__})"
        ) from error


def _unwrap(content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return _unwrap(content[wrapper])
    tensors = all(isinstance(value, torch.Tensor) for value in content.values())
    return dict(content) if tensors else {}


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {first_names([str(name) for name in content])}"
    return f"a {type(content).__name__}"
