"""Reads a checkpoint file without running any code that it may hold."""

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vlserve.errors import CheckpointMismatch
from vlserve.exporter.file_kinds import folder_kind, is_safetensors, kind_of, read_head
from vlserve.exporter.pickled import explain
from vlserve.exporter.weights import Weights, find_weights
from vlserve.models.keys import check_keys, first_names
from vlserve.runtime.archive import file_sha256

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

INDEX = ".index.json"
"""How the name of a file ends that says which shard holds each parameter."""
MAX_INDEX_BYTES = 64 * 1024 * 1024
ONE_OF_SEVERAL = re.compile(r"-\d+-of-0*([1-9]\d*)\.(safetensors|bin|pth?)$")


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by parameter name, on the CPU; see `open_checkpoint`."""
    return open_checkpoint(path).state


def open_checkpoint(path: Path, key: str | None = None, *, mapped: bool = False) -> Weights:
    """Read the weights of a safetensors or a torch file, or of the shards that an index names.

    Names are the network's own: what parallel training, torch.compile and the like put into them
    is taken off.

    Args:
        path: the file, or the ``*.index.json`` of several.
        key: under which of its keys a torch file has the weights; None: found by `find_weights`.
        mapped: leave a torch file's tensors where they are, on the disk, until they are read, and
            share them with other processes that do. The file must not be cut while they are used.

    Raises:
        CheckpointMismatch: the file is something else, is damaged, holds code, or holds no
            weights, or several and it is not clear which are meant.
    """
    if path.is_dir():
        folder = folder_kind(entry.name for entry in path.iterdir())
        raise CheckpointMismatch(f"{path} is {folder.what}. {folder.do}")
    if not path.exists():
        raise CheckpointMismatch(f"no checkpoint {path}")
    if not path.is_file():
        raise CheckpointMismatch(f"{path} is no regular file")
    several = ONE_OF_SEVERAL.search(path.name)
    if several and several[1] != "1":
        raise CheckpointMismatch(
            f"{path} is one of {several[1]} shards. Give the *{INDEX} that lists them all"
        )
    try:
        is_index = path.name.endswith(INDEX)
        content = _read_shards(path, mapped) if is_index else _read_file(path, mapped)
    except OSError as error:
        raise CheckpointMismatch(f"{path} cannot be read: {error.strerror}") from error
    try:
        return find_weights(content, key)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{path} {error}") from error


def checkpoint_sha256(path: Path) -> str:
    """Return the sha256 of a checkpoint's file; of one in shards, that of the lines ``sha256 name``
    of its index and of each shard."""
    if not path.name.endswith(INDEX):
        return file_sha256(path)
    names = [path.name, *sorted(set(_weight_map(path).values()))]
    lines = "".join(f"{file_sha256(path.parent / name)} {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_into(network: nn.Module, state: Mapping[str, torch.Tensor], family: str) -> None:
    """Load every tensor. Raises CheckpointMismatch naming missing, unexpected and misshapen
    keys."""
    network.load_state_dict(_fitting(network, state, family))


def put_into(network: nn.Module, state: Mapping[str, torch.Tensor], family: str) -> None:
    """Give a network these very tensors, instead of a copy of them, where their type is the
    network's; otherwise as `load_into`."""
    weights = _fitting(network, state, family)
    places = [
        (module, name, original, f"{prefix}.{name}" if prefix else name)
        for prefix, module in network.named_modules(remove_duplicate=False)
        for own in (module._parameters, module._buffers)
        for name, original in own.items()
        if original is not None
    ]
    tensors: dict[int, torch.Tensor] = {}
    """By the tensor in whose place it comes: one that is in two places stays one."""
    for _, _, original, full in places:
        if full in weights:
            tensor = weights[full].detach().to(original.dtype).contiguous()
            is_parameter = isinstance(original, nn.Parameter)
            tensors[id(original)] = (
                nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            )
    for module, name, original, _ in places:
        if id(original) in tensors:
            setattr(module, name, tensors[id(original)])  # recurrent layers note what is set


def _fitting(
    network: nn.Module, state: Mapping[str, torch.Tensor], family: str
) -> dict[str, torch.Tensor]:
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
    return {**{name: expected[name] for name in optional}, **state}


def _read_file(path: Path, mapped: bool) -> Any:
    head = read_head(path)
    kind = kind_of(head)
    if kind:
        raise CheckpointMismatch(f"{path} is {kind.what}. {kind.do}")
    return _read_safetensors(path) if is_safetensors(head) else _read_torch(path, mapped)


def _read_shards(path: Path, mapped: bool) -> dict[str, torch.Tensor]:
    """Return the parameters that the index names, each from its file."""
    by_file: dict[str, list[str]] = {}
    for name, file in _weight_map(path).items():
        by_file.setdefault(file, []).append(name)
    state: dict[str, torch.Tensor] = {}
    for file, names in sorted(by_file.items()):
        if not (path.parent / file).is_file():
            raise CheckpointMismatch(f"{path} names {file}, which is not beside it")
        shard = _read_file(path.parent / file, mapped)
        missing_keys = [name for name in names if name not in shard]
        if missing_keys:
            raise CheckpointMismatch(
                f"{path.parent / file} lacks {first_names(missing_keys)}, which {path.name} names"
            )
        state |= {name: shard[name] for name in names}
    return state


def _weight_map(path: Path) -> dict[str, str]:
    """Read which file beside the index has which parameter."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointMismatch(f"{path} is over {MAX_INDEX_BYTES // 1024**2} MiB: no index")
    try:
        files = json.loads(path.read_text(encoding="utf-8-sig")).get("weight_map")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointMismatch(f"{path} is no index of shards: it is not JSON") from error
    if not isinstance(files, dict) or not files:
        raise CheckpointMismatch(f"{path} is no index of shards: it has no weight_map")
    strange = [file for file in files.values() if not _is_plain_name(file)]
    if strange:
        raise CheckpointMismatch(f"{path} names {strange[0]!r}, which is no file beside it")
    return files


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and bool(file) and Path(file).name == file and "\0" not in file


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointMismatch(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path, mapped: bool) -> Any:
    """Load a torch file. ``weights_only`` admits tensors, plain containers and ALLOWED; nothing
    else is built."""
    is_zip = zipfile.is_zipfile(path)  # torch maps no file of its older format
    try:
        if is_zip:
            _check_sums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):
            warnings.simplefilter("ignore")  # remarks on old formats; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)
    except Exception as error:  # a damaged file can make the reader raise anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CheckpointMismatch(f"{path} {explain(path, forbidden[1])}") from error
        if "Unsupported operand" in str(error):
            raise CheckpointMismatch(
                f"{path} was saved with another pickle protocol than torch's own, 2. Save it with "
                "torch.save without pickle_protocol, or as safetensors"
            ) from error
        raise CheckpointMismatch(
            f"{path} is neither a safetensors nor a whole torch file ({type(error).__name__})"
        ) from error


def _check_sums(path: Path) -> None:
    """Hold each member against its checksum, which torch does not."""
    with zipfile.ZipFile(path) as members:
        member = members.testzip()
    if member is not None:
        raise zipfile.BadZipFile(f"{member} is damaged")
