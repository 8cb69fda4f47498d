"""Which changes are made of training items, by name: `Changes`, of `AUGMENTATIONS`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from PIL import Image

from vlserve.errors import DataError, SettingsError
from vlserve.training.augmentation.images import (
    MAX_MAGNITUDE,
    OPERATIONS,
    Boxes,
    Picture,
    Random,
    blurred,
    cropped,
    flipped,
    jittered,
)
from vlserve.training.augmentation.texts import Synonyms, Translator, changed, sides_swapped

AugmentationName = Literal["albef", "albef-pretrain", "blip", "randaugment", "covers", "eda"]
OF_ALBEF = (
    *("identity", "auto_contrast", "equalize", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)
"""The operations that ALBEF's and BLIP's trainings name, of the 14."""
NO_BOXES: Boxes = np.zeros((0, 4))


@dataclass(frozen=True)
class Augmentation:
    """``crop``: least and largest share of the area; ``flip``: whether half of the images are
    mirrored, with left and right exchanged in their texts; ``count`` of ``operations`` at
    ``magnitude`` of 10; ``jitter``: of brightness, contrast and saturation; ``blur``: largest
    standard deviation in pixels; ``words``: the share of a text's words that EDA changes."""

    crop: tuple[float, float] | None = None
    flip: bool = False
    operations: tuple[str, ...] = ()
    count: int = 2
    magnitude: int = 7
    jitter: float = 0.0
    blur: float = 0.0
    words: float = 0.0


AUGMENTATIONS: Mapping[AugmentationName, Augmentation] = {
    "albef": Augmentation(crop=(0.5, 1.0), flip=True, operations=OF_ALBEF),
    "albef-pretrain": Augmentation(crop=(0.2, 1.0), flip=True, operations=OF_ALBEF),
    "blip": Augmentation(crop=(0.5, 1.0), flip=True, operations=OF_ALBEF, magnitude=5),
    "randaugment": Augmentation(operations=tuple(OPERATIONS)),
    "covers": Augmentation(crop=(0.7, 1.0), jitter=0.3, blur=1.0, words=0.1),
    "eda": Augmentation(words=0.1),
}
NAMES: tuple[AugmentationName, ...] = get_args(AugmentationName)


@dataclass(frozen=True)
class Changes:
    """An augmentation with what a user brings to it."""

    augmentation: Augmentation
    synonyms: Synonyms = field(default_factory=dict)
    translator: Translator | None = None

    def picture(
        self, image: Image.Image, text: str, random: Random, boxes: Boxes = NO_BOXES
    ) -> tuple[Picture, str]:
        """Return one training item, changed: an RGB image, its text, and boxes in it."""
        own, picture_now = self.augmentation, Picture(image, boxes)
        if own.crop:
            picture_now = cropped(picture_now, own.crop, random)
        if own.flip and random.random() < 0.5:
            picture_now, text = flipped(picture_now), sides_swapped(text)
        if own.operations:
            for number in random.choice(len(own.operations), own.count):
                operation = OPERATIONS[own.operations[number]]
                picture_now = operation(picture_now, own.magnitude / MAX_MAGNITUDE, random)
        if own.jitter:
            picture_now = jittered(picture_now, own.jitter, random)
        if own.blur and random.random() < 0.5:
            picture_now = blurred(picture_now, random.uniform(0, own.blur))
        if own.words:
            text = changed(text, own.words, self.synonyms, random)
        return picture_now, text

    def translated(self, texts: Sequence[str], random: Random) -> list[str]:
        """Translate half of the texts by the user's translator, where there is one. DataError where
        it gives back another number of texts."""
        if self.translator is None:
            return list(texts)
        places = [place for place in range(len(texts)) if random.random() < 0.5]
        new = list(self.translator([texts[place] for place in places])) if places else []
        if len(new) != len(places):
            raise DataError(f"the translator made {len(new)} of {len(places)} texts")
        by_place = dict(zip(places, new, strict=True))
        return [by_place.get(place, text) for place, text in enumerate(texts)]


def augmentation_of(name: str) -> Augmentation:
    """Return an augmentation by name. SettingsError where there is none of that name."""
    for own_name in NAMES:
        if own_name == name:
            return AUGMENTATIONS[own_name]
    raise SettingsError(f"no augmentation {name}: there are {', '.join(NAMES)}")
