"""A sheet of items as an augmentation of training changes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlserve.data.look.survey import Example
from vlserve.runtime.errors import RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput
from vlserve.training.augmentation.presets import Changes, augmentation_of

ITEMS, TIMES = 8, 5
"""Items of a sheet, and how often each is changed."""
_SHOWN = ImageInput(height=224, width=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Row:
    """An item, and what became of its image and text each time."""

    example: Example
    changed: Sequence[tuple[Image.Image, str]]


def augmented(examples: Sequence[Example], name: str) -> list[Row]:
    """Return rows of the first ITEMS examples whose image serving takes. The same each time.
    SettingsError where there is no augmentation of that ``name``."""
    changes, rows = Changes(augmentation_of(name)), list[Row]()
    for example in examples:
        image = _image(example.image)
        if image is None:
            continue
        random = np.random.default_rng(len(rows))
        pictures = [changes.picture(image, example.text, random) for _ in range(TIMES)]
        rows.append(Row(example, [(picture.image, text) for picture, text in pictures]))
        if len(rows) == ITEMS:
            break
    return rows


def _image(path: Path) -> Image.Image | None:
    """Return the image as training sees it, or None where it cannot be read."""
    try:
        pixels = decode(path.read_bytes(), _SHOWN)
    except (OSError, ValueError, RequestError):
        return None
    return Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))
