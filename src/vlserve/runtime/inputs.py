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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, create_model

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


class Inputs(Protocol):
    """What reads the requests of a task: the default steps of `vlserve.runtime.task.Task`."""

    def sample(self, fields: Any) -> Sample:
        """Return the arrays of one request, without the batch axis. Raises RequestError."""
        ...

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples with their texts as ids."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return the arrays of one batch."""
        ...


class VisualFields(RequestFields):
    """An image, or features of its regions, as the model takes them."""

    image: ImageField | None = None
    features: FeaturesField | None = None
    boxes: BoxesField | None = None


class VisualTextFields(VisualFields):
    """And a text about it."""

    text: TextField


class PairTextFields(VisualTextFields):
    """A second image, or features of it, beside the first."""

    image2: ImageField | None = None
    features2: FeaturesField | None = None
    boxes2: BoxesField | None = None


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
        """Return ``image`` of one item; or ``visual``, ``visual_mask`` and, where there are,
        ``boxes``."""
        return self.sample_of(fields.image, fields.features, fields.boxes)

    def pair(self, first: Sample, second: Sample) -> Sample:
        """Join two samples to one whose arrays have an axis of 2 in front."""
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
        """Return the arrays of fields whose names end in ``suffix``."""
        values = {"image": image, FEATURES: features, "boxes": boxes}
        for name, value in values.items():
            if value is not None and not self._takes(name):
                raise _not_taken(name, suffix)
        if (image is None) == (features is None):
            names = [f"{name}{suffix}" for name in ("image", FEATURES) if self._takes(name)]
            reason = "Field required" if image is None else "send one of them"
            raise _invalid(f"{' or '.join(names)}: {reason}")
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

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples as they are: they hold no text."""
        return samples

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return one batch, in which some may have come as images and others as features."""
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
        """Make features of the samples' images, all in one run; the others stay as they are."""
        places = [place for place, sample in enumerate(samples) if "image" in sample]
        if not places:
            return list(samples)
        assert self._extractor is not None
        images = np.stack([samples[place]["image"] for place in places])
        single = images.reshape(-1, *images.shape[-3:])
        visual = self._extractor.run({"image": single})["visual"]
        grids = visual.reshape(*images.shape[:-3], *visual.shape[1:])
        results = list(samples)
        for place, features in zip(places, grids, strict=True):
            results[place] = self._of_grid(features)
        return results

    def _of_grid(self, features: NDArray[Any]) -> Sample:
        """Return features (cells, dim) of one image, or (2, cells, dim) of two."""
        if features.ndim == 3:
            return _batch([self._of_grid(grid) for grid in features])
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
        """Return ``text`` of one item, as it is."""
        check_size(text, self._spec)
        return {TEXT: np.array(text)}

    def tokenise(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return ``text_ids`` (tokens,) in place of each ``text``; samples without one stay."""
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
        mask = np.arange(text.ids.shape[1]) < text.lengths[:, None]
        return {
            "text_ids": text.ids,
            "text_mask": mask.astype(np.int64),
            "text_length": text.lengths,
        }


class VisualTextInputs:
    """Reads an image or regions and a text, each where a graph takes it. Thread-safe."""

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        visual, text = takes_visual(manifest), takes_text(manifest)
        if not visual and not text:
            raise ManifestInvalid(f"task {manifest.task} needs image, regions or text")
        self._visual = VisualInputs(manifest, backends) if visual else None
        self._text = TextInputs(manifest, root) if text else None

    def sample(self, fields: VisualTextFields) -> Sample:
        """Return the arrays of one item and its ``text``.

        Raises RequestError for a field that is missing, unreadable, or not the model's.
        """
        return self._visual_sample(fields) | self._text_sample(fields.text)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples with ``text_ids`` (tokens,) in place of their texts."""
        return self._text.tokenise(samples) if self._text else samples

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return one batch, padded to its longest text and its most regions."""
        visual = self._visual.collate(samples) if self._visual else {}
        return visual | (self._text.collate(samples) if self._text else {})

    def _visual_sample(self, fields: VisualFields, suffix: str = "") -> Sample:
        if self._visual:
            return self._visual.sample_of(fields.image, fields.features, fields.boxes, suffix)
        for name in ("image", FEATURES, "boxes"):
            if getattr(fields, name) is not None:
                raise _not_taken(name, suffix)
        return {}

    def _text_sample(self, text: str | None) -> Sample:
        if self._text is None and text is not None:
            raise _not_taken(TEXT)
        return self._text.sample(text) if self._text and text is not None else {}


class PairInputs(VisualTextInputs):
    """Reads two images, or regions of both, and a text. Thread-safe."""

    def sample(self, fields: VisualTextFields) -> Sample:
        """Return the arrays of one item, what is seen with an axis of 2 in front, and its text."""
        assert isinstance(fields, PairTextFields)
        first = self._visual_sample(fields)
        second = VisualFields.model_construct(
            image=fields.image2, features=fields.features2, boxes=fields.boxes2
        )
        samples = (first, self._visual_sample(second, suffix="2"))
        pair = self._visual.pair(*samples) if self._visual else {}
        return pair | self._text_sample(fields.text)


def takes_visual(manifest: Manifest) -> bool:
    """Return whether requests bring an image or features: the manifest or a graph says so."""
    listed = manifest.image is not None or manifest.regions is not None
    return listed or bool(_graph_inputs(manifest) & {"image", "visual", "visual_mask", "boxes"})


def takes_text(manifest: Manifest) -> bool:
    """Return whether requests bring a text: the manifest or a graph says so."""
    names = {"text_ids", "text_mask", "text_length"}
    return manifest.text is not None or bool(_graph_inputs(manifest) & names)


def inputs_of(
    schema: type[BaseModel], manifest: Manifest, root: Path, backends: Mapping[str, Backend]
) -> Inputs | None:
    """Return the reader of requests of this schema; None where it is built on none of those above.

    Raises ManifestInvalid where the manifest does not say how something is read.
    """
    if issubclass(schema, PairTextFields):
        return PairInputs(manifest, root, backends)
    if issubclass(schema, VisualTextFields):
        return VisualTextInputs(manifest, root, backends)
    if issubclass(schema, VisualFields):
        return VisualInputs(manifest, backends)
    return None


def fields_of(schema: type[BaseModel], manifest: Manifest) -> type[BaseModel]:
    """Return a task's request schema as a model takes it: without the need of a text where no
    graph takes one."""
    if not issubclass(schema, VisualTextFields) or takes_text(manifest):
        return schema
    return create_model(schema.__name__, __base__=schema, text=(TextField | None, None))


def _graph_inputs(manifest: Manifest) -> set[str]:
    return {tensor.name for graph in manifest.graphs.values() for tensor in graph.inputs}


def _batch(samples: Sequence[Sample]) -> Arrays:
    """Stack samples; their regions are padded to the most of them."""
    axes = {"visual": -2, "boxes": -2, "visual_mask": -1}
    return {
        name: pad_regions([sample[name] for sample in samples], axes[name])
        if name in axes
        else np.stack([sample[name] for sample in samples])
        for name in samples[0]
        if name in axes or name == "image"
    }


def _fixed_regions(manifest: Manifest) -> int | None:
    """Return how many regions every item must have, where a graph takes no other number."""
    counts = [
        tensor.dims[-2]
        for graph in manifest.graphs.values()
        for tensor in graph.inputs
        if tensor.name == "visual"
    ]
    return next((dim for dim in counts if isinstance(dim, int)), None)


def _not_taken(name: str, suffix: str = "") -> RequestError:
    return _invalid(f"{name}{suffix}: this model takes no {name}")


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
