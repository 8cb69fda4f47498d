"""Features of image regions that lines of data name, with their boxes and what a detector saw.

``features`` names a .npy file (regions, dim). Where a line gives no ``boxes``, those of the
``<name>_info.npy`` beside the features are taken, as published extractors write it; what the
detector saw in each region (``cls_prob``) stands there too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.errors import DataError
from vlserve.exporter.regions import read_info, read_regions
from vlserve.runtime.errors import RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput, RegionInput
from vlserve.runtime.regions import grid_boxes, grid_of, read_boxes, read_features, with_areas
from vlserve.runtime.text import Tokenizer, check_size, read_text
from vlserve.training.evaluators.items import (
    AnswerItem,
    EntailItem,
    GroundItem,
    Look,
    PairedItem,
    ReasonItem,
    TaskItem,
    read_task_file,
)
from vlserve.training.finetune.data import TaskData, texts_of, usable

SCHEMAS: Mapping[str, type[TaskItem]] = {
    "answer": AnswerItem,
    "tag": AnswerItem,
    "entail": EntailItem,
    "reason": ReasonItem,
    "match": PairedItem,
    "ground": GroundItem,
    "pretrain": PairedItem,
}
"""The lines of each objective; docs/evaluation.md shows them."""
Extractor = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""An image (3, height, width) -> features of its cells (cells, dim)."""


@dataclass(frozen=True)
class Regions:
    """visual (regions, dim); boxes (regions, 5), with the fraction of the area, or None where the
    network reads none; seen (regions, objects): the detector's distribution, where it is asked."""

    visual: NDArray[np.float32]
    boxes: NDArray[np.float32] | None = None
    seen: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RegionFiles:
    """How a network's regions are read. ``objects``: of the detector's distribution, which every
    image must have then; 0: it is not read. ``image`` and ``extractor``: of a network that takes
    images too."""

    spec: RegionInput
    objects: int = 0
    image: ImageInput | None = None
    extractor: Extractor | None = None

    def read(self, folder: Path, look: Look) -> Regions:
        """Raises DataError, RequestError, OSError or ValueError for what cannot be used."""
        if look.features is None:
            return self._of_image(folder, look)
        file = folder / look.features
        visual = read_features(file.read_bytes(), self.spec)
        boxes = self._boxes(file, look, len(visual)) if self.spec.boxes else None
        if not self.objects:
            return Regions(visual, boxes)
        return Regions(visual, boxes, self._seen(file, len(visual)))

    def _of_image(self, folder: Path, look: Look) -> Regions:
        if self.image is None or self.extractor is None or look.img is None:
            raise ValueError("no features")
        visual = self.extractor(decode((folder / look.img).read_bytes(), self.image))
        boxes = grid_boxes(*grid_of(len(visual), self.image.height, self.image.width))
        return Regions(visual, boxes if self.spec.boxes else None)

    def _boxes(self, file: Path, look: Look, regions: int) -> NDArray[np.float32]:
        most = self.spec.max_bytes
        if isinstance(look.boxes, str):
            return read_boxes((file.parent / look.boxes).read_bytes(), regions, most)
        if look.boxes is not None:
            return read_boxes([list(corners) for corners in look.boxes], regions, most)
        corners = read_regions(file).boxes
        if len(corners) != regions:
            raise ValueError(f"{info_of(file).name} has {len(corners)} boxes of {regions} regions")
        return with_areas(corners)

    def _seen(self, file: Path, regions: int) -> NDArray[np.float32]:
        values = np.asarray(read_info(info_of(file)).get("cls_prob"), dtype=object)
        if values.shape != (regions, self.objects):
            raise ValueError(
                f"{info_of(file).name}: cls_prob must be ({regions}, {self.objects}), "
                f"not {values.shape}"
            )
        try:
            probabilities = values.astype(np.float32)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{info_of(file).name}: cls_prob holds what is no number") from error
        if not np.isfinite(probabilities).all() or probabilities.min() < 0:
            raise ValueError(f"{info_of(file).name}: cls_prob holds what is no probability")
        return probabilities


def info_of(features: Path) -> Path:
    """The file that published extractors write beside features."""
    return features.with_name(f"{features.stem}_info.npy")


def read_region_data(
    path: Path,
    objective: str,
    files: RegionFiles,
    text: Tokenizer,
    *,
    labels: Sequence[str] = (),
    without: frozenset[str] = frozenset(),
    on_read: Callable[[int, int], None] | None = None,
) -> TaskData:
    """Lines that serving would refuse are left out, and so are ids of ``without`` and items none of
    whose labels is one of ``labels``. The images of a reason item are two. DataError where fewer
    than two items are usable, or most are not."""
    file = read_task_file(path, SCHEMAS[objective])
    classes = set(labels)
    cache: dict[Look, Regions] = {}
    images: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    for count, (line, item) in enumerate(file.by_line.items(), start=1):
        try:
            if item.id in without:
                raise ValueError("its id is in the training file too")
            if classes and not classes.intersection(named(item)):
                raise ValueError(f"unknown label {', '.join(named(item))}")
            images[line] = _look(path.parent, item, files, text, cache)
        except OSError as error:
            reasons[line] = f"{error.filename} cannot be read: {error.strerror}"
        except (DataError, RequestError, ValueError) as error:
            reasons[line] = str(error)
        if on_read and (count % 100 == 0 or count == file.used):
            on_read(count, file.used)
    return usable(file.without(reasons), images)


def named(item: Any) -> tuple[str, ...]:
    """What an item is labelled with; empty where its label is no name."""
    label = getattr(item, "label", ())
    return (
        (label,) if isinstance(label, str) else tuple(label) if label not in (True, False) else ()
    )


def _look(
    folder: Path, item: Any, files: RegionFiles, text: Tokenizer, cache: dict[Look, Regions]
) -> Regions | tuple[Regions, Regions]:
    """What an item shows, each file read once."""
    for sentence in texts_of(item):
        check_size(read_text(sentence), text.spec)
        text.ids(sentence)
    looks = (item.look, item.look2) if isinstance(item, ReasonItem) else (item.look,)
    for look in looks:
        if look not in cache:
            cache[look] = files.read(folder, look)
    regions = tuple(cache[look] for look in looks)
    return (regions[0], regions[1]) if len(regions) > 1 else regions[0]
