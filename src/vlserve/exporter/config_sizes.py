"""What a config.json may ask for, told by the checkpoint beside it before any of it is built."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vlserve.errors import ExportError

FREE_SIZE = 4096
"""Sizes up to this one need not be any of the checkpoint's, as the longest text that is read."""
NOT_SIZES = frozenset({"image", "training", "writing"})
"""Sections with limits of their own, wherever they stand, and one that is not read."""
REQUEST_LIMITS = frozenset({"max_bytes", "max_pixels"})
"""What a request may send: nothing of that size is built."""
REPEATED = ("layers", "blocks")
"""How the names end of what is built so many times."""


def check_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse whole numbers that no network of this checkpoint has: memory would run out, or hours
    pass, before its tensors are compared with the network's.

    Args:
        config: config.json, completed by the recipe.
        state: the checkpoint's tensors by name.

    Raises:
        ExportError: names the entry.
    """
    largest = max([FREE_SIZE, *(size for tensor in state.values() for size in tensor.shape)])
    for names, number in _numbers(config):
        repeated = any(name.endswith(REPEATED) for name in names)
        limit = len(state) if repeated else largest
        if number > limit:
            has = f"{limit} tensors" if repeated else f"no size over {limit}"
            raise ExportError(
                f"config.json: {'.'.join(names)} is {number}, and the checkpoint has {has}: give "
                "the config.json of this checkpoint"
            )


def _numbers(
    value: Any, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int | float]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in NOT_SIZES | REQUEST_LIMITS:
                yield from _numbers(inner, (*names, str(name)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, names)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield names, value
