"""Where image regions are, as networks read it."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def with_areas(boxes: Floats) -> Floats:
    """(regions, 4): x1, y1, x2, y2 as fractions of width and height -> (regions, 5): and the
    fraction of the image's area."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.concatenate([boxes, areas[:, None]], axis=1)


def with_global_region(visual: Floats, boxes: Floats) -> tuple[Floats, Floats]:
    """visual (regions, dim) and boxes (regions, 5), with a region in front that is the whole image:
    the mean of all features. As ViLBERT's networks were trained."""
    whole = np.array([[0, 0, 1, 1, 1]], dtype=boxes.dtype)
    mean = visual.mean(axis=0, keepdims=True, dtype=visual.dtype)
    return np.concatenate([mean, visual]), np.concatenate([whole, boxes])
