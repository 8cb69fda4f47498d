"""A batch of training items, changed at random."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlserve.errors import SettingsError
from vlserve.runtime.manifest import ImageInput
from vlserve.training.augmentation.presets import AUGMENTATIONS, Changes, augmentation_of
from vlserve.training.augmentation.texts import load_translator, read_synonyms
from vlserve.training.finetune.plan import FinetuneOptions, Objective

WITHOUT_FLIP: tuple[Objective, ...] = ("answer", "reason")
"""Their answers, and which image is the left one, would have to be mirrored too."""
CHANGES = ("augmentation", "synonyms", "translator")
"""Options that say what is changed."""


@dataclass(frozen=True)
class ItemChanges:
    """What is done to items whose images are normalised as ``image`` says."""

    image: ImageInput
    changes: Changes

    def __call__(
        self, images: Tensor, texts: Sequence[str], random: np.random.Generator
    ) -> tuple[Tensor, list[str]]:
        """Images (batch, 3, height, width) or (batch, 2, 3, height, width), and their texts."""
        new_images, new_texts = [], []
        for image, text in zip(images, texts, strict=True):
            looks = image if image.ndim == 4 else image.unsqueeze(0)
            arrays = []
            for look in looks:
                picture, text = self.changes.picture(self._picture(look), text, random)
                arrays.append(self._array(picture.image))
            new_images.append(np.stack(arrays) if image.ndim == 4 else arrays[0])
            new_texts.append(text)
        return torch.from_numpy(np.stack(new_images)), self.changes.translated(new_texts, random)

    def _picture(self, image: Tensor) -> Image.Image:
        pixels = image.numpy().transpose(1, 2, 0) * self.image.std + self.image.mean
        return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))

    def _array(self, picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture, dtype=np.float32) / 255
        mean, std = np.array(self.image.mean, np.float32), np.array(self.image.std, np.float32)
        values = (pixels - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def item_changes(
    options: FinetuneOptions, objective: Objective, image: ImageInput
) -> ItemChanges | None:
    """What the options say; None where they say nothing. DataError where the user's files cannot
    be used."""
    if options.augmentation is None and options.translator is None:
        return None
    own = augmentation_of(options.augmentation or "eda")
    if options.augmentation is None:
        own = replace(own, words=0.0)
    if objective in WITHOUT_FLIP:
        own = replace(own, flip=False)
    synonyms = read_synonyms(options.synonyms) if options.synonyms else {}
    translator = load_translator(options.translator) if options.translator else None
    return ItemChanges(image, Changes(own, synonyms, translator))


def refuse_changes(options: FinetuneOptions, family: str) -> None:
    """Refuse what changes items for a family that learns from features. SettingsError names the
    options."""
    given = [name for name in CHANGES if getattr(options, name) is not None]
    if given:
        raise SettingsError(
            f"training options: {', '.join(given)}: items of {family} are features and their "
            f"texts, which are not changed: leave {'it' if len(given) == 1 else 'them'} out"
        )


def refuse_idle_synonyms(options: FinetuneOptions) -> None:
    """Refuse synonyms that no augmentation would use. SettingsError names those that do."""
    users = [name for name, each in AUGMENTATIONS.items() if each.words]
    if options.synonyms and options.augmentation not in users:
        raise SettingsError(
            f"training options: synonyms: augmentation {' or '.join(users)} alone uses them: set "
            "one of these, or leave them out"
        )
