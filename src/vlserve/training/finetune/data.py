"""Items of a task as arrays: images decoded as serving does, texts as ids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlserve.errors import DataError
from vlserve.runtime.errors import RequestError
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Ids, Tokenizer, check_size, read_text
from vlserve.training.evaluators.items import (
    AnswerItem,
    CaptionItem,
    EntailItem,
    PairedItem,
    ReasonItem,
    TaskFile,
    TaskItem,
    read_task_file,
)
from vlserve.training.image_files import ImageOf, decoded_once
from vlserve.training.json_lines import BadLine, refuse_mostly_bad
from vlserve.training.samples import READ_STEP

SCHEMAS: Mapping[str, type[TaskItem]] = {
    "retrieve": PairedItem,
    "pretrain": PairedItem,
    "entail": EntailItem,
    "reason": ReasonItem,
    "answer": AnswerItem,
    "caption": CaptionItem,
}
"""The lines of each objective; docs/evaluation.md shows them."""
Images = Mapping[int, Any]


@dataclass(frozen=True)
class TaskData:
    """Usable items, and ``images`` by line: (3, height, width), or (2, 3, height, width) where an
    item has two; of networks that read features, those."""

    file: TaskFile[Any]
    images: Images

    @property
    def lines(self) -> list[int]:
        return list(self.file.by_line)

    def of(self, lines: Sequence[int]) -> list[Any]:
        """Items by line."""
        return [self.file.by_line[line] for line in lines]

    def image(self, lines: Sequence[int]) -> Tensor:
        """(lines, …) of the images."""
        return torch.from_numpy(np.stack([self.images[line] for line in lines]))


def read_data(
    path: Path,
    objective: str,
    image: ImageInput,
    text: Tokenizer | None,
    *,
    labels: Sequence[str] = (),
    without: frozenset[str] = frozenset(),
    on_read: Callable[[int, int], None] | None = None,
) -> TaskData:
    """Lines that serving would refuse are left out, and so are ids of ``without`` and labels that
    are not ``labels``. DataError where fewer than two items are usable, or most are not."""
    file = read_task_file(path, SCHEMAS[objective])
    reasons = {
        line: "its id is in the training file too"
        for line, item in file.by_line.items()
        if item.id in without
    }
    reasons |= {
        line: f"unknown label {label}"
        for line, item in file.by_line.items()
        if labels and (label := getattr(item, "label", None)) is not None and label not in labels
    }
    file = file.without(reasons)
    images: dict[int, NDArray[np.float32]] = {}
    refusals: dict[int, str] = {}
    folder = file.path.parent
    names = (name for item in file.items for name in _names(item) if name is not None)
    with decoded_once((folder / name for name in names), image) as image_of:
        for count, (line, item) in enumerate(file.by_line.items(), start=1):
            try:
                images[line] = _look(folder, item, image_of, text)
            except OSError as error:
                refusals[line] = f"image {error.filename} cannot be read: {error.strerror}"
            except (RequestError, ValueError) as error:
                refusals[line] = f"{item.img}: {error}"
            if on_read and (count % READ_STEP == 0 or count == file.used):
                on_read(count, file.used)
    return usable(file.without(refusals), images)


def usable(file: TaskFile[Any], images: Images) -> TaskData:
    """Return a file that is left with enough to train on. DataError where fewer than two items are
    usable, or most lines are bad."""
    refuse_mostly_bad(file.path, file.used, file.bad_lines)
    if file.used < 2:
        raise DataError(f"{file.path} has {file.used} usable item(s): at least two are needed")
    return TaskData(file, images)


def bad_lines(*data: TaskData) -> tuple[BadLine, ...]:
    return tuple(bad for part in data for bad in part.file.bad_lines)


def texts_of(item: TaskItem) -> tuple[str, ...]:
    """What an item says of its image."""
    if isinstance(item, PairedItem):
        return item.texts
    captions: tuple[str, ...] = getattr(item, "captions", ())
    text: str | None = getattr(item, "text", None)
    return captions or (() if text is None else (text,))


def padded(rows: Sequence[Sequence[int] | Ids], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids of texts -> ids and mask (texts, tokens), padded to the longest."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[place, : len(row)] = 1
    return ids, mask


def _names(item: Any) -> list[str | None]:
    """The files of an item's image or images."""
    return [item.img, item.img2] if isinstance(item, ReasonItem) else [item.img]


def _look(
    folder: Path, item: Any, image_of: ImageOf, text: Tokenizer | None
) -> NDArray[np.float32]:
    """The image or images. Raises OSError, RequestError or ValueError where serving would refuse
    the item."""
    for sentence in texts_of(item):
        if text is not None:
            check_size(read_text(sentence), text.spec)
            text.ids(sentence)
    names = [name for name in _names(item) if name is not None]
    if len(names) < len(_names(item)):
        raise ValueError("no img")
    looks = [image_of(folder / name) for name in names]
    return looks[0] if len(looks) == 1 else np.stack(looks)
