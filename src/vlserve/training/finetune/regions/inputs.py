"""A batch of texts and regions, as the graphs of ViLBERT and VisualBERT read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlserve.runtime.regions import pad_regions, with_global_region
from vlserve.runtime.text import Tokenizer
from vlserve.training.finetune.data import padded
from vlserve.training.finetune.regions.data import Regions

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class RegionInputs:
    """``global_region``: the mean of all regions, with a box over the whole image, comes first."""

    tokenizer: Tokenizer
    global_region: bool

    def texts(self, texts: Sequence[str]) -> Batch:
        """text_ids and text_mask (batch, text)."""
        return self.ids([self.tokenizer.ids(text) for text in texts])

    def ids(self, rows: Sequence[NDArray[np.int64]]) -> Batch:
        """The same of texts that are ids."""
        ids, mask = padded(rows, self.tokenizer.spec.pad_id)
        return {"text_ids": ids, "text_mask": mask}

    def looks(self, looks: Sequence[Regions]) -> Batch:
        """visual (batch, regions, dim), visual_mask (batch, regions), and boxes (batch, regions, 5)
        where there are some."""
        visual, boxes = [], []
        for look in looks:
            rows, corners = look.visual, look.boxes
            if self.global_region and corners is not None:
                rows, corners = with_global_region(rows, corners)
            visual.append(rows)
            if corners is not None:
                boxes.append(corners)
        mask = [np.ones(len(rows), dtype=np.int64) for rows in visual]
        batch = {"visual": pad_regions(visual, -2), "visual_mask": pad_regions(mask, -1)}
        if boxes:
            batch["boxes"] = pad_regions(boxes, -2)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def pairs(self, pairs: Sequence[tuple[Regions, Regions]]) -> Batch:
        """The same of two images an item: an axis of 2 after the first."""
        flat = self.looks([look for pair in pairs for look in pair])
        return {name: x.reshape(len(pairs), 2, *x.shape[1:]) for name, x in flat.items()}

    def batch(self, texts: Sequence[str], looks: Sequence[Regions]) -> Batch:
        """Texts, each with its image."""
        return self.texts(texts) | self.looks(looks)
