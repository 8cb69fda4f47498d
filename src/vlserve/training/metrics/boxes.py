"""Where a phrase is: boxes against the true one, and heat maps against either."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch.nn import functional

RIGHT_FROM = 0.5
"""A box is right from this IoU on."""

Box = Sequence[float]


def box_iou(first: Box, second: Box) -> float:
    """Of two boxes x1, y1, x2, y2 in the same unit."""
    return float(box_ious([first], second)[0])


def box_ious(boxes: Sequence[Box], box: Box) -> NDArray[np.float64]:
    """Of several boxes with one, (boxes,)."""
    arrays = [
        np.array([[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in some], dtype=np.float64)
        for some in (boxes, [box])
    ]
    ious: NDArray[np.float64] = coco_mask.iou(*arrays, [0])[:, 0]
    return ious


def pixel_iou(first: Box, second: Box) -> float:
    """Of two boxes x, y, width, height in pixels, as the published figures on RefCOCO count them
    (lichengunc/refer, salesforce/ALBEF): an overlap of one pixel or less in width or in height is
    none."""
    (x, y, width, height), (x2, y2, width2, height2) = first, second
    left, top = max(x, x2), max(y, y2)
    right, bottom = min(x + width - 1, x2 + width2 - 1), min(y + height - 1, y2 + height2 - 1)
    intersection = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    return float(intersection / (width * height + width2 * height2 - intersection))


def box_of_map(
    grid: NDArray[np.floating], boxes: Sequence[Box], width: int, height: int, alpha: float = 0.5
) -> int | None:
    """The place of the box that holds most of a heat map, as ALBEF's evaluation chooses: the map's
    sum in the box over its area ** ``alpha``.

    ``grid`` (rows, columns) is spread over ``width`` x ``height`` pixels, bicubic; ``boxes`` are x,
    y, width, height in pixels. None where no sum is above 0.
    """
    cells = torch.from_numpy(np.asarray(grid, dtype=np.float32))[None, None]
    spread = functional.interpolate(cells, (height, width), mode="bicubic")[0, 0]
    scores = [
        float(
            spread[int(y) : int(y + box_height), int(x) : int(x + box_width)].sum()
            / (box_width * box_height) ** alpha
        )
        for x, y, box_width, box_height in boxes
    ]
    if not scores or max(scores) <= 0:
        return None
    return int(np.argmax(scores))


def points_into(peak: Mapping[str, float] | None, box: Box) -> bool:
    """Whether a peak (x, y; none: no) lies in the box x1, y1, x2, y2: the pointing game of Zhang et
    al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016)."""
    if peak is None:
        return False
    x1, y1, x2, y2 = box
    return x1 <= peak["x"] <= x2 and y1 <= peak["y"] <= y2
