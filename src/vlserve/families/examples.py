"""Random inputs of graphs, padded like real batches."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from vlserve.runtime.manifest import TensorSpec


def example_inputs(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    vocabulary: int,
    pad_id: int = 0,
    padded: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return one tensor an input: ``*_mask`` lets each row see its first tokens, ``*_ids`` are
    below ``vocabulary``, all else is normal noise.

    ``x_ids`` is padded where ``x_mask`` is 0; ids named in ``padded`` are padded without a mask.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for axes in inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in axes.dims]
        if axes.name.endswith("_mask"):
            tensors[axes.name] = _mask(shape, random)
        elif axes.name.endswith("_ids"):
            tensors[axes.name] = torch.randint(0, vocabulary, shape, generator=random)
        else:
            tensors[axes.name] = torch.randn(shape, generator=random)
    for name, ids in tensors.items():
        mask = tensors.get(name.replace("_ids", "_mask")) if name.endswith("_ids") else None
        if name in padded:
            mask = _mask(list(ids.shape), random)
        if mask is not None:
            tensors[name] = torch.where(mask == 1, ids, pad_id)
    return tensors


def _mask(shape: list[int], random: torch.Generator) -> Tensor:
    """Return (…, tokens): 1 for between one and all tokens of each row, fewer than all in the
    first."""
    tokens = shape[-1]
    length = torch.randint(1, tokens + 1, shape[:-1], generator=random)
    length.view(-1)[0] = max(1, tokens - 1)
    return (torch.arange(tokens) < length.unsqueeze(-1)).long()
