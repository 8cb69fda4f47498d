"""Finds the weights in what a training script saved, and the names that a recipe knows them by.

Everything here is pure: from what was read to parameters by name, and what to say about it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from vlserve.errors import CheckpointMismatch
from vlserve.models.keys import first_names

State = Mapping[str, torch.Tensor]
Result = TypeVar("Result")

PREFERRED = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Where several keys hold weights, those of the first of these are taken."""
AVERAGED = re.compile(r"ema|averag|swa|shadow|teacher|momentum", re.IGNORECASE)
"""Keys of weights that training keeps beside those that it trains."""
DEPTH = 4
"""How many keys may lead to the weights."""
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a parameter's name that torch.compile, FSDP and activation checkpointing put in."""
PARALLEL = "module."
"""In front of every name that DataParallel, DistributedDataParallel or AveragedModel saves."""
AVERAGE_COUNT = "n_averaged"
"""Of torch.optim.swa_utils.AveragedModel: how often it averaged."""


@dataclass(frozen=True)
class NotWhole:
    """Tensors that are no network's own weights, shown by the name of one."""

    what: str
    do: str
    pattern: re.Pattern[str]


NOT_WHOLE = (
    NotWhole(
        "adapters (LoRA), not the weights that they change",
        "Merge them where they were trained, as by merge_and_unload() of peft",
        re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B)(\.|$)"),
    ),
    NotWhole(
        "weights that were quantised (GPTQ, AWQ, bitsandbytes)",
        "Give those that they were made of: `--precision int8` quantises them here",
        re.compile(r"\.(qweight|qzeros|absmax|quant_map|SCB|_packed_params(\..+)?)$"),
    ),
    NotWhole(
        "the flattened parameters of FSDP",
        "Save them with StateDictType.FULL_STATE_DICT",
        re.compile(r"(^|\.)_?flat_param(_\d+)?$"),
    ),
)
"""Refused by name."""


@dataclass(frozen=True)
class Weights:
    """Parameters by name, and what there is to say about how they were found."""

    state: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()


def find_weights(content: Any, key: str | None = None) -> Weights:
    """Find the weights in what was read from a file.

    Args:
        content: what a training script saved: a dictionary of tensors, or one that holds such.
        key: under which key the weights are; keys in keys are joined by dots. None: under the one
            that holds any, or the first of `PREFERRED`.

    Raises:
        CheckpointMismatch: there are no weights, or it is not clear which are meant.
    """
    states = {".".join(path): state for path, state in _states(content)}
    if key is not None and key not in states:
        there_are = f": there are some under {', '.join(states)}" if any(states) else ""
        raise CheckpointMismatch(f"has no weights under the key {key}{there_are}")
    if not states:
        raise CheckpointMismatch(describe(content))
    state_key = key if key is not None else _chosen(tuple(states))
    notes = [f"the weights are those under the key {state_key}"] if state_key else []
    others = [name for name in states if name != state_key]
    if others:
        notes[0] += f"; {first_names(others)} holds weights too: --state {others[0]} takes those"
    _refuse_not_whole(states[state_key])
    weights = _plain_names(states[state_key])
    return Weights(weights.state, (*notes, *weights.notes))


def fit_names(
    weights: Weights, attempt: Callable[[dict[str, torch.Tensor]], Result]
) -> tuple[str, Result]:
    """Take a prefix that all keys share off, as far as needed.

    Args:
        weights: with the names that were read.
        attempt: raises CheckpointMismatch where the names do not fit.

    Returns:
        The prefix, empty where the names fit as they are, and what ``attempt`` returned.

    Raises:
        CheckpointMismatch: the names fit with no prefix off; says why not with and without.
    """
    refusals: list[tuple[str, CheckpointMismatch]] = []
    for prefix, state in _without_prefixes(weights.state):
        try:
            return prefix, attempt(state)
        except CheckpointMismatch as error:
            refusals.append((prefix, error))
    (_, first), (prefix, last) = refusals[0], refusals[-1]
    if not prefix:
        raise first
    raise CheckpointMismatch(
        f"{first}; without the prefix {prefix} of every key: {last}"
    ) from first


def without_prefix(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """Return the parameters under their names without ``prefix``, which all have."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items()}


def prefix_note(prefix: str) -> tuple[str, ...]:
    """Return what to say about a prefix that was taken off."""
    return (f"the prefix {prefix} was taken off all keys",) if prefix else ()


def describe(content: Any) -> str:
    """Return what was read instead of weights, and what to do."""
    if isinstance(content, list | tuple) and any(isinstance(x, torch.Tensor) for x in content):
        return "holds no weights: tensors without names. Save the network's state_dict()"
    if not isinstance(content, Mapping):
        return f"holds no weights: a {type(content).__name__}"
    if not content:
        return "holds no weights: an empty dictionary"
    names = first_names([str(name) for name in content])
    if _is_optimizer(content):
        return "holds no weights: it is an optimizer's state. Give the file of the network's"
    if all(isinstance(value, np.ndarray) for value in content.values()):
        return (
            f"holds no weights of torch: a dictionary of numpy arrays, {names}. Save them as "
            "tensors: torch.save({name: torch.from_numpy(array), …})"
        )
    optimizers = [str(name) for name, value in content.items() if _is_optimizer(value)]
    if optimizers:
        return (
            f"holds no weights: a dictionary of {names}, with an optimizer's state under "
            f"{optimizers[0]}. Give the file of the network's"
        )
    return f"holds no weights: a dictionary of {names}"


def _states(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every dictionary of tensors under their names, with the keys that lead to it."""
    if not isinstance(content, Mapping) or _is_optimizer(content):
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not any(tensor.ndim for tensor in tensors.values()):
        tensors = {}  # scores by file, losses by name
    if tensors and len(tensors) == len(content):
        yield path, tensors
        return
    deeper = [
        states
        for name, value in content.items()
        if isinstance(name, str) and len(path) < DEPTH
        for states in _states(value, (*path, name))
    ]
    if deeper:
        yield from deeper
    elif any("." in name for name in tensors):  # parameters beside an epoch, a score, …
        yield path, tensors


def _refuse_not_whole(state: State) -> None:
    for kind in NOT_WHOLE:
        name = next((name for name in state if kind.pattern.search(name)), None)
        if name is not None:
            raise CheckpointMismatch(f"holds {kind.what} ({name}). {kind.do}")


def _is_optimizer(content: Any) -> bool:
    return isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys()


def _chosen(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    for key in PREFERRED:
        under = [name for name in names if name.split(".")[0] == key]
        if len(under) == 1:
            return under[0]
    candidates = [name for name in names if not AVERAGED.search(name)]
    if len(candidates) == 1:
        return candidates[0]
    raise CheckpointMismatch(
        f"holds weights under {len(names)} keys, {first_names(names)}: --state KEY chooses"
    )


def _plain_names(state: State) -> Weights:
    """Return the names of the network's own parameters, without what torch's wrappers put in."""
    parallel = any(name.startswith(PARALLEL) for name in state)
    tensors: dict[str, torch.Tensor] = {}
    omissions: set[str] = set()
    for name, tensor in state.items():
        if name == AVERAGE_COUNT and parallel:
            omissions.add(name)
            continue
        parts = name.split(".")
        plain = ".".join(part for part in parts if part not in INSERTED)
        omissions |= {f"{part}." for part in parts if part in INSERTED}
        if plain.startswith(PARALLEL):
            plain = plain.removeprefix(PARALLEL)
            omissions.add(PARALLEL)
        if plain in tensors:
            parts_out = ", ".join(sorted(omissions))
            raise CheckpointMismatch(f"two of the keys are {plain} without {parts_out}")
        tensors[plain] = tensor
    if not omissions:
        return Weights(tensors)
    return Weights(tensors, (f"the keys are read without {', '.join(sorted(omissions))}",))


def _without_prefixes(
    state: dict[str, torch.Tensor],
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the parameters as they are, then without the first part of the name that all share,
    …"""
    prefix = ""
    while True:
        yield prefix, without_prefix(state, prefix)
        first = {name[len(prefix) :].partition(".")[::2] for name in state}
        heads = {head for head, _ in first}
        if len(heads) != 1 or not all(rest for _, rest in first):
            return
        prefix += f"{heads.pop()}."
