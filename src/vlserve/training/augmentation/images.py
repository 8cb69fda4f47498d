"""Changes of one image, an RGB picture of Pillow, whose boxes follow it.

RandAugment: Cubuk et al. (arXiv:1909.13719), with the operations, magnitudes and grey fill of ALBEF
(arXiv:2107.07651, dataset/randaugment.py). Boxes are x1, y1, x2, y2 in shares of width and height.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling, Transform

Boxes = NDArray[np.float64]
"""(boxes, 4)."""
Random = np.random.Generator
GREY = (128, 128, 128)
MAX_MAGNITUDE = 10
SHEAR, ROTATION, SHIFT = 0.3, 30.0, 10 / 256
"""At the highest magnitude: a share, degrees, a share of the side (ALBEF: 10 pixels of 256)."""
CROP_TRIES, CROP_SHAPES = 10, (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Picture:
    """An image, and boxes in it."""

    image: Image.Image
    boxes: Boxes

    def with_image(self, image: Image.Image) -> "Picture":
        """Return the changed image, in which everything is where it was."""
        return Picture(image, self.boxes)


Operation = Callable[[Picture, float, Random], Picture]
"""Of a picture, a magnitude in 0 to 1, and a generator for the sign of what has one."""


def moved(picture: Picture, source_of: NDArray[np.float64]) -> Picture:
    """Move the picture by an affine map (2, 3) of pixels of the result to those of the source. A
    box becomes the smallest upright one around its corners, cut at the edges."""
    image = picture.image
    data = tuple(source_of.ravel().tolist())
    result = image.transform(
        image.size, Transform.AFFINE, data, Resampling.BILINEAR, fillcolor=GREY
    )
    there = np.linalg.inv(np.vstack([source_of, [0, 0, 1]]))[:2]
    size = np.array(image.size, dtype=np.float64)
    x1, y1, x2, y2 = picture.boxes.T
    corners = np.stack([[x1, y1], [x2, y1], [x1, y2], [x2, y2]]).transpose(2, 0, 1) * size
    places = (corners @ there[:, :2].T + there[:, 2]) / size
    boxes = np.concatenate([places.min(axis=1), places.max(axis=1)], axis=1).clip(0, 1)
    return Picture(result, boxes)


def _sheared(across: bool) -> Operation:
    def change(picture: Picture, magnitude: float, random: Random) -> Picture:
        by = _signed(magnitude * SHEAR, random)
        rows = [[1.0, by, 0.0], [0.0, 1.0, 0.0]] if across else [[1.0, 0.0, 0.0], [by, 1.0, 0.0]]
        return moved(picture, np.array(rows))

    return change


def _shifted(across: bool) -> Operation:
    def change(picture: Picture, magnitude: float, random: Random) -> Picture:
        width, height = picture.image.size
        by = _signed(magnitude * SHIFT, random) * (width if across else height)
        return moved(picture, np.array([[1, 0, by * across], [0, 1, by * (not across)]], float))

    return change


def _rotated(picture: Picture, magnitude: float, random: Random) -> Picture:
    angle = np.deg2rad(_signed(magnitude * ROTATION, random))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(picture.image.size) - 1) / 2
    return moved(picture, np.column_stack([turn, centre - turn @ centre]))


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def change(picture: Picture, magnitude: float, random: Random) -> Picture:
        return picture.with_image(kind(picture.image).enhance(magnitude * 1.8 + 0.1))

    return change


def _plain(change: Callable[[Image.Image, float], Image.Image]) -> Operation:
    return lambda picture, magnitude, random: picture.with_image(change(picture.image, magnitude))


OPERATIONS: Mapping[str, Operation] = {
    "identity": _plain(lambda image, _: image),
    "auto_contrast": _plain(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": _plain(lambda image, _: ImageOps.equalize(image)),
    "rotate": _rotated,
    "solarize": _plain(lambda image, by: ImageOps.solarize(image, int(by * 256))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _sheared(True),
    "translate_x": _shifted(True),
    "translate_y": _shifted(False),
    "posterize": _plain(lambda image, by: ImageOps.posterize(image, max(int(by * 4), 1))),
    "shear_y": _sheared(False),
}
"""ALBEF's 14."""


def cropped(picture: Picture, scale: tuple[float, float], random: Random) -> Picture:
    """Return a crop of a share of the area within ``scale``, of a shape of 3:4 to 4:3, at the
    picture's own size again. A box is cut at the edges; one outside is empty: x1 = x2 or y1 =
    y2."""
    width, height = picture.image.size
    for _ in range(CROP_TRIES):
        area = width * height * random.uniform(*scale)
        shape = np.exp(random.uniform(*np.log(CROP_SHAPES)))
        wide, high = np.sqrt(area * shape), np.sqrt(area / shape)
        if wide <= width and high <= height:
            left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
            break
    else:
        left, top, wide, high = 0.0, 0.0, float(width), float(height)
    part = (left, top, left + wide, top + high)
    image = picture.image.resize(picture.image.size, Resampling.BICUBIC, box=part)
    corner = np.array([left / width, top / height] * 2)
    boxes = (picture.boxes - corner) / np.array([wide / width, high / height] * 2)
    return Picture(image, boxes.clip(0, 1))


def flipped(picture: Picture) -> Picture:
    """Exchange left and right."""
    x1, y1, x2, y2 = picture.boxes.T
    return Picture(ImageOps.mirror(picture.image), np.stack([1 - x2, y1, 1 - x1, y2], axis=1))


def jittered(picture: Picture, by: float, random: Random) -> Picture:
    """Multiply brightness, contrast and saturation by 1 - ``by`` to 1 + ``by``, in that order."""
    image = picture.image
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(random.uniform(1 - by, 1 + by))
    return picture.with_image(image)


def blurred(picture: Picture, radius: float) -> Picture:
    """Blur a picture by a Gaussian; ``radius``: its standard deviation in pixels."""
    return picture.with_image(picture.image.filter(ImageFilter.GaussianBlur(radius)))


def _signed(value: float, random: Random) -> float:
    return value if random.random() < 0.5 else -value
