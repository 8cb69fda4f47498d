"""Image bytes -> array: one function for training, export, evaluation and serving."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import ImageInput


def decode(data: bytes, spec: ImageInput) -> NDArray[np.float32]:
    """Bytes of an image file -> normalised float32 (3, height, width)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (spec.width, spec.height))
            pixels = image.convert("RGB").resize(
                (spec.width, spec.height), Image.Resampling.BILINEAR
            )
    except Exception as error:
        raise RequestError(ErrorCode.IMAGE_UNREADABLE, f"not an image: {error}") from error
    return _normalise(np.asarray(pixels), spec)


def _normalise(pixels: NDArray[Any], spec: ImageInput) -> NDArray[np.float32]:
    mean = np.array(spec.mean, np.float32)[:, None, None]
    std = np.array(spec.std, np.float32)[:, None, None]
    array = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    array *= 1 / (255 * std)
    array -= mean / std
    return array
