"""Words and regions that are hidden, for a network to guess."""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a place that is not asked."""
WORD_SHARE = 0.15
REGION_SHARE = 0.15
MASKED_OF_CHOSEN, DRAWN_OF_CHOSEN = 0.8, 0.1
"""Of the chosen words: hidden; replaced by any word. The others stay as they are, and are asked
too. Devlin et al., BERT (arXiv:1810.04805)."""
ZEROED_OF_CHOSEN = 0.9
"""Of the chosen regions, as ViLBERT (arXiv:1908.02265) does; the others stay."""


@dataclass(frozen=True)
class MaskedWords:
    """ids (batch, text) as the network reads them, and labels (batch, text)."""

    ids: Tensor
    labels: Tensor


def mask_words(
    ids: Tensor,
    special: Tensor,
    *,
    mask_id: int,
    words: int,
    share: float = WORD_SHARE,
    generator: torch.Generator | None = None,
) -> MaskedWords:
    """Choose a ``share`` of the words; of the chosen 80 % are hidden, 10 % are any word, 10 % stay.
    ids (batch, text); ``special`` (ids,): ids that are never chosen; ``words``: ids there are."""
    choosable = ~torch.isin(ids, special)
    selection = (torch.rand(ids.shape, generator=generator) < share) & choosable
    kind = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(words, ids.shape, generator=generator)
    hidden = selection & (kind < MASKED_OF_CHOSEN)
    replacement = (
        selection & (kind >= MASKED_OF_CHOSEN) & (kind < MASKED_OF_CHOSEN + DRAWN_OF_CHOSEN)
    )
    masked = torch.where(hidden, torch.full_like(ids, mask_id), ids)
    masked = torch.where(replacement, random_ids, masked)
    return MaskedWords(masked, torch.where(selection, ids, torch.full_like(ids, IGNORED)))


def mask_regions(
    visual: Tensor,
    mask: Tensor,
    *,
    share: float = REGION_SHARE,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose a ``share`` of an image's regions; 90 % of the chosen become zeros. visual (batch,
    regions, dim), mask (batch, regions) -> visual, and 1 where a region is asked (batch, regions).
    """
    selection = (torch.rand(mask.shape, generator=generator) < share) & (mask > 0)
    zeros = selection & (torch.rand(mask.shape, generator=generator) < ZEROED_OF_CHOSEN)
    return visual.masked_fill(zeros.unsqueeze(2), 0.0), selection.to(torch.int64)
