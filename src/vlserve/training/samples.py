"""Items -> arrays, by the functions that serving uses; decoded once, kept in memory."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlserve.runtime.errors import RequestError
from vlserve.runtime.manifest import ImageInput, TextInput
from vlserve.runtime.text import Ids, Tokenizer, check_size, read_text
from vlserve.training.data import Item, ItemFile
from vlserve.training.image_files import decoded_once
from vlserve.training.tagger_augmentation import Augmentation

Decoded = Mapping[int, NDArray[np.float32]]
"""Line number -> image (3, height, width); items that show the same one share it."""

READ_STEP = 100

OnRead = Callable[[int, int], None]
"""Called with how many of how many items are read, every READ_STEP items and at the end."""


class TrainingSamples(Protocol):
    """Items as a network, or the trained part of one, takes them."""

    @property
    def targets(self) -> NDArray[np.int64]:
        """(items, labels) of 0 and 1."""
        ...

    def __len__(self) -> int: ...

    def inputs(
        self, rows: NDArray[np.int64], augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """Return inputs by name of the items at ``rows``."""
        ...


@dataclass(frozen=True)
class Samples:
    """The arrays of some items: images (items, 3, height, width), token ids of each title, and
    targets (items, labels) of 0 and 1."""

    items: Sequence[Item]
    images: NDArray[np.float32]
    text_ids: Sequence[Ids]
    targets: NDArray[np.int64]
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.items)

    def inputs(
        self, rows: NDArray[np.int64], augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """Return the inputs that serving has: image, text_ids, text_mask, text_length."""
        images = torch.from_numpy(self.images[rows])
        titles = [self.text_ids[row] for row in rows]
        if augmentation:
            images, titles = augmentation.images(images), augmentation.titles(titles)
        text = self.tokenizer.pad(titles)
        mask = np.arange(text.ids.shape[1]) < text.lengths[:, None]
        return {
            "image": images,
            "text_ids": torch.from_numpy(text.ids),
            "text_mask": torch.from_numpy(mask.astype(np.int64)),
            "text_length": torch.from_numpy(text.lengths),
        }


def run_by_name(network: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Run the network on those of the inputs that its ``forward`` has a parameter for."""
    return network(**{name: inputs[name] for name in taken_by(network, inputs)})


def taken_by(network: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those of the names that the network's ``forward`` has a parameter for, in its
    order."""
    present = set(names)
    return [name for name in inspect.signature(network.forward).parameters if name in present]


def decode_images(
    file: ItemFile, image: ImageInput, on_read: OnRead | None = None
) -> tuple[ItemFile, dict[int, NDArray[np.float32]]]:
    """Decode every image of a file, once however many items show it. Items whose image or text
    serving would refuse come back as bad lines of the file; the others with their image by line
    number."""
    images: dict[int, NDArray[np.float32]] = {}
    reasons: dict[int, str] = {}
    with decoded_once((item.image for item in file.items), image) as image_of:
        for count, item in enumerate(file.items, start=1):
            try:
                check_size(read_text(item.text), _ANY_TEXT)
                images[item.line] = image_of(item.image)
            except OSError as error:
                reasons[item.line] = f"image {item.image} cannot be read: {error.strerror}"
            except (RequestError, ValueError) as error:
                reasons[item.line] = f"{item.image.name}: {error}"
            if on_read and (count % READ_STEP == 0 or count == len(file.items)):
                on_read(count, len(file.items))
    return file.without(reasons), images


def to_samples(
    items: Sequence[Item], images: Decoded, tokenizer: Tokenizer, labels: Sequence[str]
) -> Samples:
    """Return arrays of items; labels that are not among ``labels`` are no targets."""
    return Samples(
        items=items,
        images=np.stack([images[item.line] for item in items]),
        text_ids=[tokenizer.ids(item.text) for item in items],
        targets=to_targets(items, labels),
        tokenizer=tokenizer,
    )


def to_targets(items: Sequence[Item], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return targets (items, labels) of 0 and 1; an item may have labels that are not among
    ``labels``."""
    column = {label: index for index, label in enumerate(labels)}
    targets = np.zeros((len(items), len(labels)), dtype=np.int64)
    for row, item in zip(targets, items, strict=True):
        row[[column[label] for label in item.labels if label in column]] = 1
    return targets


def batches(
    samples: TrainingSamples,
    order: Sequence[int],
    batch_size: int,
    augmentation: Augmentation | None = None,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield inputs by name, and the targets (batch, labels), of items in ``order``."""
    for start in range(0, len(order), batch_size):
        rows = np.asarray(order[start : start + batch_size])
        yield samples.inputs(rows, augmentation), torch.from_numpy(samples.targets[rows])


_ANY_TEXT = TextInput(tokenizer="characters", file="vocabulary.json", max_length=1)
