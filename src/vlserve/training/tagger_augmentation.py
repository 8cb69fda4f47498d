"""Random changes of training covers and titles; validation and serving never see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Ids

MIN_CROP = 0.7
JITTER = 0.3
MIN_WINDOW = 0.7
UNKNOWN_SHARE = 0.1


@dataclass(frozen=True)
class Augmentation:
    """Changes that ``generator`` draws, of images normalised as ``image`` says and of titles where
    ``unknown_id`` stands for characters that the vocabulary lacks."""

    image: ImageInput
    unknown_id: int
    generator: torch.Generator
    framed: bool = False
    """Whether titles begin and end with a token of no word, [CLS] and [SEP], which stays."""

    def images(self, images: Tensor) -> Tensor:
        """Change normalised images (batch, 3, height, width): a random crop scaled back to the
        serving size, mirrored half of the time, with other brightness, contrast and saturation."""
        mean = torch.tensor(self.image.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.image.std).view(1, 3, 1, 1)
        pixels = _crop_and_mirror(images, self.generator) * std + mean
        return (_jitter(pixels, self.generator).clamp(0, 1) - mean) / std

    def titles(self, rows: Sequence[Ids]) -> list[Ids]:
        """Cut ids of titles to a window of each, at least MIN_WINDOW of its length, in which a
        share of the characters is unknown, so that no title is learnt by heart."""
        new_rows = []
        for title in rows:
            row = title[1:-1] if self.framed else title
            share, place = torch.rand(2, generator=self.generator).tolist()
            length = round(len(row) * (MIN_WINDOW + (1 - MIN_WINDOW) * share))
            start = round((len(row) - length) * place)
            window = row[start : start + length].copy()
            hidden = torch.rand(length, generator=self.generator) < UNKNOWN_SHARE
            window[hidden.numpy()] = self.unknown_id
            new_row = np.concatenate([title[:1], window, title[-1:]]) if self.framed else window
            new_rows.append(new_row)
        return new_rows


def _crop_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    count = len(images)
    scale = _uniform((count, 2), MIN_CROP, 1.0, generator)  # of width and height
    shift = _uniform((count, 2), -1.0, 1.0, generator) * (1 - scale)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale[:, 0] * mirror
    theta[:, 1, 1] = scale[:, 1]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of RGB in [0, 1], which may leave that range."""
    factors = (len(pixels), 1, 1, 1)
    pixels = pixels * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)
    level = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = level + (pixels - level) * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)
    grey = pixels.mean(dim=1, keepdim=True)
    return grey + (pixels - grey) * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
