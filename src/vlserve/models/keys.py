"""What the keys of a checkpoint show, and which of them are left out on purpose."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from vlserve.errors import CheckpointMismatch


def count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different numbers follow ``prefix`` in the keys."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})


def is_ignored(name: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the regular expressions of ``patterns`` matches the whole key."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def drop_alias(state: dict[str, Tensor], alias: str, name: str) -> None:
    """Remove ``alias``, a second key of the parameter ``name``, or rename it where the checkpoint
    has only the alias. CheckpointMismatch where it has both and they differ."""
    if alias not in state:
        return
    tensor = state.pop(alias)
    if not torch.equal(state.setdefault(name, tensor), tensor):
        raise CheckpointMismatch(f"{alias} must be {name}, but has other values")


def check_keys(family: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raise CheckpointMismatch, with the first of each that there are, unless both are empty."""
    kinds = {"missing": missing, "unexpected": unexpected}
    wrong = [f"{kind} {first_names(names)}" for kind, names in kinds.items() if names]
    if wrong:
        raise CheckpointMismatch(f"not a {family} checkpoint: {'; '.join(wrong)}")


def foreign_keys(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> list[str]:
    """Return the keys that begin with none of the ``prefixes``."""
    return [name for name in state if not name.startswith(prefixes)]


def first_names(names: Sequence[str], limit: int = 3) -> str:
    """Return the first ``limit`` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
