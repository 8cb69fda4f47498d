"""Random changes of training images; validation and serving never see them."""

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_CROP = 0.7
JITTER = 0.3


def augment(images: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (batch, 3, height, width) -> the same shape: a random crop scaled back to
    the serving size, mirrored half of the time, with other brightness, contrast and saturation.
    ``mean`` and ``std`` (3,) are those of the normalisation."""
    return _jitter(_crop_and_mirror(images, generator), mean, std, generator)


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


def _jitter(images: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    factors = (len(images), 1, 1, 1)
    images = images * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)  # RGB in [0, 1]
    images = images * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(factors, 1 - JITTER, 1 + JITTER, generator)
    return (images.clamp(0, 1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
