"""ALBEF's and BLIP's networks as the objectives of pairs see them: the same words for both."""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.families.vision_text import embed
from vlserve.training.distributed import gathered, over_ranks, size


@dataclass(frozen=True)
class Texts:
    """Texts of a batch: ids and mask (batch, text), and their states before they see an image
    (batch, text, hidden)."""

    ids: Tensor
    mask: Tensor
    states: Tensor

    def rows(self, places: Tensor) -> Self:
        """Those at ``places``."""
        return type(self)(self.ids[places], self.mask[places], self.states[places])

    def joined(self, others: Self) -> Self:
        """These, and the others after them."""
        return type(self)(
            torch.cat([self.ids, others.ids]),
            torch.cat([self.mask, others.mask]),
            torch.cat([self.states, others.states]),
        )

    def of_all_ranks(self) -> tuple[Self, Self]:
        """These, and those of every rank, as wide as the longest; states without a gradient."""
        wide = self._widened(max(over_ranks(range(size()), lambda _: self.ids.shape[1])))
        parts = (gathered(wide.ids), gathered(wide.mask), gathered(wide.states))
        return wide, type(self)(*parts)

    def _widened(self, width: int) -> Self:
        more = width - self.ids.shape[1]
        pairs = F.pad(self.ids, (0, more)), F.pad(self.mask, (0, more))
        return type(self)(*pairs, F.pad(self.states, (0, 0, 0, more)))


class PairEncoders(Protocol):
    """What contrast and matching need of a network."""

    @property
    def network(self) -> Any:
        """The network itself: its ``visual_encoder`` and projections are read."""
        ...

    def texts(self, ids: Tensor, mask: Tensor) -> Texts:
        """Texts that have not seen an image."""
        ...

    def match_logits(self, image_states: Tensor, texts: Texts) -> Tensor:
        """Logits (batch, 2) of not matching and matching."""
        ...


@dataclass(frozen=True)
class AlbefEncoders:
    """The text encoder's upper layers go on from the states of the lower ones."""

    network: Any

    def texts(self, ids: Tensor, mask: Tensor) -> Texts:
        encoder = self.network.text_encoder
        states = encoder.run(encoder.embeddings(ids), mask, (), 0, encoder.first_cross_layer)
        return Texts(ids, mask, states)

    def match_logits(self, image_states: Tensor, texts: Texts) -> Tensor:
        logits: Tensor = self.network.itm_head(self.fused(image_states, texts)[:, 0])
        return logits

    def fused(self, image_states: Tensor, texts: Texts) -> Tensor:
        """States (batch, text, hidden) of texts that have seen their image."""
        encoder = self.network.text_encoder
        first, last = encoder.first_cross_layer, len(encoder.layers)
        fused: Tensor = encoder.run(texts.states, texts.mask, (image_states,), first, last)
        return fused


@dataclass(frozen=True)
class BlipEncoders:
    """The text encoder reads the text again, with [ENC] in front and the image beside it."""

    network: Any
    enc_id: int

    def texts(self, ids: Tensor, mask: Tensor) -> Texts:
        return Texts(ids, mask, self.network.text_encoder(ids, mask))

    def match_logits(self, image_states: Tensor, texts: Texts) -> Tensor:
        ids = torch.cat([torch.full_like(texts.ids[:, :1], self.enc_id), texts.ids[:, 1:]], dim=1)
        states = self.network.text_encoder(ids, texts.mask, (image_states,))
        logits: Tensor = self.network.itm_head(states[:, 0])
        return logits


def image_vector(network: nn.Module, states: Tensor) -> Tensor:
    """States (batch, patches, hidden) -> unit vectors (batch, embedding)."""
    return embed(network.get_submodule("vision_proj"), states)


def text_vector(network: nn.Module, states: Tensor) -> Tensor:
    """States (batch, text, hidden) -> unit vectors (batch, embedding)."""
    return embed(network.get_submodule("text_proj"), states)
