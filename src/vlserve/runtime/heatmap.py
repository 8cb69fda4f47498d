"""Where in an image something is: a grid of values as a peak, a picture, and over the image."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlserve.runtime.image import decode, upright_size
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.types import Float64Array

MAX_OVERLAY_SIDE = 1024
"""Pixels; larger images are laid under the heat map at this size."""


def scaled(grid: Float64Array) -> Float64Array:
    """Scale (rows, columns) to 0 to 1, the largest 1; all 0 where nothing is above 0."""
    positive = np.maximum(grid, 0)
    largest = positive.max()
    return np.asarray(positive / largest) if largest > 0 else positive


def peak_of(grid: Float64Array) -> dict[str, float] | None:
    """Return middle of the largest cell, the first of equals, as fractions of width and height;
    None where all cells are 0."""
    rows, columns = grid.shape
    row, column = divmod(int(grid.argmax()), columns)
    if grid[row, column] <= 0:
        return None
    return {"x": (column + 0.5) / columns, "y": (row + 0.5) / rows}


def heat_map_png(grid: Float64Array, size: ImageInput) -> str:
    """Return grey PNG of that size as base64; 1 is white."""
    return _png(Image.fromarray(_bytes(_spread(grid, size.width, size.height))))


def overlay_png(grid: Float64Array, image: bytes, spec: ImageInput) -> str:
    """Return the image in its own proportions, coloured where the grid is high, as base64 of a PNG.

    Colour grows with the value ** 0.7, as in ALBEF's own visualisation.
    """
    width, height = _at_most(upright_size(image), MAX_OVERLAY_SIDE)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "height": height, "width": width}
    pixels = decode(image, spec.model_copy(update=plain)).transpose(1, 2, 0)
    heat = _spread(grid, width, height)
    share = (heat**0.7)[..., None]
    return _png(Image.fromarray(_bytes((1 - share) * pixels + share * _colours(heat))))


def _at_most(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _spread(grid: Float64Array, width: int, height: int) -> Float64Array:
    """Resize (rows, columns) to (height, width), smoothly."""
    cells = Image.fromarray(grid.astype(np.float32))
    spread = cells.resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(spread, dtype=np.float64), 0, 1)


def _colours(heat: Float64Array) -> Float64Array:
    """Return blue, green, yellow and red from 0 to 1, (height, width, 3)."""
    channels = [1.5 - np.abs(4 * heat - middle) for middle in (3, 2, 1)]
    return np.clip(np.stack(channels, axis=2), 0, 1)


def _bytes(values: Float64Array) -> NDArray[np.uint8]:
    return np.round(values * 255).astype(np.uint8)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
