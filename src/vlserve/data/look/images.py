"""One image: what it is, and a hash by which images that look alike are found."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from vlserve.runtime.errors import RequestError
from vlserve.runtime.image import FORMATS, decode
from vlserve.runtime.manifest import ImageInput

SIDE = 32
_SMALL = ImageInput(height=SIDE, width=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_GREY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
FLAT_BELOW = 2 / 255
"""Standard deviation of grey below which an image has no structure to compare."""


class Unreadable(Exception):
    """An image that serving would refuse; the message says why."""


@dataclass(frozen=True)
class ImageFacts:
    """``width`` and ``height``: as stored; ``hash``: 64 bits; ``colour``: means of red, green and
    blue, 0 to 255."""

    format: str
    width: int
    height: int
    hash: int
    colour: tuple[int, int, int]


def image_facts(path: Path) -> ImageFacts:
    """Decode an image as serving does, and return what it is. Raises `Unreadable`."""
    try:
        if not path.is_file():
            raise Unreadable("there is no such file")
        if path.stat().st_size > _SMALL.max_bytes:
            raise Unreadable(f"the image has more than {_SMALL.max_bytes} bytes")
        data = path.read_bytes()
        pixels = decode(data, _SMALL)
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from error
    except (RequestError, ValueError) as error:
        raise Unreadable(str(error)) from error
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind, (width, height) = image.format or "", image.size
    means = (pixels.mean(axis=(1, 2)) * 255).round().astype(int)
    red, green, blue = (int(value) for value in means)
    return ImageFacts(kind, width, height, perceptual_hash(pixels), (red, green, blue))


def perceptual_hash(pixels: NDArray[np.float32]) -> int:
    """Return 64 bits of an image of (3, 32, 32) between 0 and 1: which of the 63 lowest frequencies
    of its grey, by a cosine transform, are above their median (Zauner, Implementation and
    Benchmarking of Perceptual Image Hash Functions, 2010); 0 of an image without structure."""
    grey = (pixels * _GREY).sum(axis=0)
    if grey.std() < FLAT_BELOW:
        return 0
    low: NDArray[Any] = dctn(grey)[:8, :8].ravel()[1:]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
