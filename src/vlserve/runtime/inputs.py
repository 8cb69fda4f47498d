"""A request's image, regions and text -> the arrays that graphs take, by the manifest alone.

    image        float32 (batch, 3, height, width), or (batch, 2, 3, height, width) of two images
    visual       float32 (batch, regions, dim), or (batch, 2, regions, dim)
    visual_mask  int64 (batch, regions), 1 for a region and 0 for padding
    boxes        float32 (batch, regions, 5)
    text_ids, text_mask, text_length   int64 (batch, text), (batch, text), (batch,)

Where there is a graph ``features``, an image becomes visual features by it, and a request brings
an image or the features themselves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.body import BoxesField, FeaturesField, ImageField, RequestFields, TextField
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.regions import (
    grid_boxes,
    grid_of,
    pad_regions,
    read_boxes,
    read_features,
    with_global_region,
)
from vlserve.runtime.text import Tokenizer, check_size, load_tokenizer
from vlserve.runtime.types import Arrays, Backend, Sample

TEXT = "text"
"""A sample's text until it is tokenised with its batch."""

FEATURES = "features"
"""The graph that makes features of an image, and the field that brings them."""


class VisualFields(RequestFields):
    """An image, or features of its regions, as the model takes them."""

    image: ImageField | None = None
    features: FeaturesField | None = None
    boxes: BoxesField | None = None


class VisualTextFields(VisualFields):
    """And a text about it."""

    text: TextField


class VisualInputs:
    """Images or regions. Thread-safe."""

    def __init__(self, manifest: Manifest, backends: Mapping[str, Backend]) -> None:
        self._image, self._regions = manifest.image, manifest.regions
        self._extractor = backends.get(FEATURES)
        if self._image is None and self._regions is None:
            raise ManifestInvalid(f"task {manifest.task} needs image or regions in the manifest")
        if self._regions and self._image and FEATURES not in manifest.graphs:
            raise ManifestInvalid("image and regions, but no graph features between them")
        self._fixed = _fixed_regions(manifest)
        self._global_region = bool(manifest.options.get("global_region"))
        """Whether the mean of all regions, with a box over the whole image, comes first."""

    def sample(self, fields: VisualFields) -> Sample:
        """``image`` of one item; or ``visual``, ``visual_mask`` and, where there are, ``boxes``."""
        return self.sample_of(fields.image, fields.features, fields.boxes)

    def pair(self, first: Sample, second: Sample) -> Sample:
        """Two samples -> one whose arrays have an axis of 2 in front."""
        if first.keys() != second.keys():
            raise _invalid("send two images, or features of both")
        return _batch((first, second))

    def sample_of(
        self,
        image: bytes | None,
        features: bytes | None,
        boxes: bytes | list[Any] | None,
        suffix: str = "",
    ) -> Sample:
        """The same, of fields whose names end in ``suffix``."""
        given = {"image": image, FEATURES: features, "boxes": boxes}
        for name, value in given.items():
            if value is not None and not self._takes(name):
                raise _invalid(f"{name}{suffix}: this model takes no {name}")
        if (image is None) == (features is None):
            names = [f"{name}{suffix}" for name in ("image", FEATURES) if self._takes(name)]
            said = "Field required" if image is None else "send one of them"
            raise _invalid(f"{' or '.join(names)}: {said}")
        if image is not None:
            assert self._image is not None
            if boxes is not None:
                raise _invalid(f"boxes{suffix}: are those of features; send no image with them")
            return {"image": decode(image, self._image)}
        assert self._regions is not None and features is not None
        visual = read_features(features, self._regions, f"{FEATURES}{suffix}")
        if self._fixed and len(visual) != self._fixed:
            raise _invalid(f"{FEATURES}{suffix}: must be ({self._fixed}, {visual.shape[1]})")
        corners: NDArray[np.float32] | None = None
        if self._regions.boxes:
            if boxes is None:
                raise _invalid(f"boxes{suffix}: Field required")
            max_bytes = self._regions.max_bytes
            corners = read_boxes(boxes, len(visual), max_bytes, f"boxes{suffix}")
        return self._visual(visual, corners)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """One batch, in which some may have come as images and others as features."""
        if self._regions is None:
            return {"image": np.stack([sample["image"] for sample in samples])}
        return _batch(self._extract(samples))

    def _takes(self, name: str) -> bool:
        if name == "image":
            return self._image is not None
        return self._regions is not None and (name == FEATURES or self._regions.boxes)

    def _visual(self, visual: NDArray[Any], boxes: NDArray[np.float32] | None) -> Sample:
        if self._global_region and boxes is not None:
            visual, boxes = with_global_region(visual, boxes)
        sample: Sample = {"visual": visual, "visual_mask": np.ones(len(visual), dtype=np.int64)}
        return sample if boxes is None else sample | {"boxes": boxes}

    def _extract(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples without images: those become features, all in one run."""
        places = [place for place, sample in enumerate(samples) if "image" in sample]
        if not places:
            return list(samples)
        assert self._extractor is not None
        images = np.stack([samples[place]["image"] for place in places])
        single = images.reshape(-1, *images.shape[-3:])
        visual = self._extractor.run({"image": single})["visual"]
        found = visual.reshape(*images.shape[:-3], *visual.shape[1:])
        done = list(samples)
        for place, features in zip(places, found, strict=True):
            done[place] = self._of_grid(features)
        return done

    def _of_grid(self, features: NDArray[Any]) -> Sample:
        """Features (cells, dim) of one image, or (2, cells, dim) of two."""
        if features.ndim == 3:
            return _batch([self._of_grid(one) for one in features])
        assert self._image is not None and self._regions is not None
        boxes = None
        if self._regions.boxes:
            boxes = grid_boxes(*grid_of(len(features), self._image.height, self._image.width))
        return self._visual(features, boxes)


class TextInputs:
    """Texts. Thread-safe."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        if manifest.text is None:
            raise ManifestInvalid(f"task {manifest.task} needs text in the manifest")
        self._spec = manifest.text
        self._tokenizer: Tokenizer = load_tokenizer(manifest.text, root)

    def sample(self, text: str) -> Sample:
        """``text`` of one item, as it is."""
        check_size(text, self._spec)
        return {TEXT: np.array(text)}

    def tokenise(self, samples: Sequence[Sample]) -> list[Sample]:
        """``text_ids`` (tokens,) in place of each ``text``; samples without one stay."""
        texts = [str(sample[TEXT]) for sample in samples if TEXT in sample]
        rows = iter(self._tokenizer.rows(texts))
        return [
            {name: value for name, value in sample.items() if name != TEXT}
            | {"text_ids": next(rows)}
            if TEXT in sample
            else sample
            for sample in samples
        ]

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        text = self._tokenizer.pad([sample["text_ids"] for sample in samples])
        seen = np.arange(text.ids.shape[1]) < text.lengths[:, None]
        return {
            "text_ids": text.ids,
            "text_mask": seen.astype(np.int64),
            "text_length": text.lengths,
        }


class VisualTextInputs:
    """An image or regions, and a text. Thread-safe."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        self.visual = VisualInputs(manifest, backends)
        self.text = TextInputs(manifest, root)

    def sample(self, fields: VisualTextFields) -> Sample:
        return self.visual.sample(fields) | self.text.sample(fields.text)

    def tokenise(self, samples: Sequence[Sample]) -> list[Sample]:
        return self.text.tokenise(samples)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return self.visual.collate(samples) | self.text.collate(samples)


def _batch(samples: Sequence[Sample]) -> Arrays:
    """Stacked; the regions are padded to the most of them."""
    axes = {"visual": -2, "boxes": -2, "visual_mask": -1}
    return {
        name: pad_regions([sample[name] for sample in samples], axes[name])
        if name in axes
        else np.stack([sample[name] for sample in samples])
        for name in samples[0]
        if name in axes or name == "image"
    }


def _fixed_regions(manifest: Manifest) -> int | None:
    """How many regions every item must have, where a graph takes no other number."""
    found = [
        tensor.dims[-2]
        for graph in manifest.graphs.values()
        for tensor in graph.inputs
        if tensor.name == "visual"
    ]
    return next((dim for dim in found if isinstance(dim, int)), None)


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
