"""Tensors and plain values, nested in dictionaries and lists, as one safetensors file: nothing is
pickled."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlserve.errors import TrainingError


def flatten(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON, with its tensors put into ``tensors`` under names that begin with
    ``prefix``. Dictionaries keep the types of their keys: numbers, texts, tuples of them."""
    if isinstance(value, Tensor):
        name = f"{prefix}{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[_key(key), flatten(item, prefix, tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [flatten(item, prefix, tensors) for item in value]}
    return {"value": value}


def restore(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `flatten` was given."""
    (kind, content), *_ = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {_unkey(key): restore(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [restore(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``path``, which appears whole, on disk; OSError where it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(_apart(plain), partial, metadata=metadata)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except SafetensorError as error:
        raise _as_os_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON beside the tensors. TrainingError where the file is not a run's state."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not the state of a training run: {error!r}") from error
    return header


def read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors, of which safetensors takes no two of the same memory: those after the first are
    copied."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        apart[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart


def _key(key: Any) -> Any:
    return {"tuple": list(key)} if isinstance(key, tuple) else key


def _unkey(key: Any) -> Any:
    return tuple(key["tuple"]) if isinstance(key, dict) else key


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """Return what the system said, which safetensors tells as a text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path} cannot be written: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def random_state() -> Tensor:
    """Return the state of torch's global generator."""
    return torch.get_rng_state()
