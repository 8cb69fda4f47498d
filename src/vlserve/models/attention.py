"""Multi-head attention over any leading axes."""

import torch
from torch import Tensor, nn

MASKED = -10000.0
"""Added to the scores of what may not be seen; what BERT's own code adds, and safe in float16."""


def mask_bias(mask: Tensor) -> Tensor:
    """Return what to add to scores of every head and query, (…, 1, 1, keys); mask (…, keys): 1
    seen."""
    return ((1.0 - mask.to(torch.float32)) * MASKED)[..., None, None, :]


def causal_bias(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return what to add to scores, (queries, keys): each query, the last of which is the last key,
    sees the keys up to itself."""
    key = torch.arange(keys, device=device)
    query = torch.arange(queries, device=device).unsqueeze(1) + (keys - queries)
    return (key > query).to(torch.float32) * MASKED


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(…, tokens, hidden) -> (…, heads, tokens, hidden / heads)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """(…, heads, tokens, size) -> (…, tokens, heads * size)."""
    return x.transpose(-2, -3).flatten(-2)


class AttentionMap(nn.Module):
    """How much each query attends to each key. A module, so that a hook can take its output."""

    def forward(self, query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
        """(…, heads, queries, size), (…, heads, keys, size) -> (…, heads, queries, keys)."""
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return torch.softmax(scores if bias is None else scores + bias, dim=-1)
