"""Requests to a model of any task, and the same in numbers for those who answer by hand."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.exporter.probes import drawn_image
from vlserve.runtime.manifest import Manifest

TEXTS = ("cat", "a red ball and a cat, dogs " * 3, "", "red 猫 ball")
"""Short, longer than any tiny model reads, empty, and with what the vocabulary lacks."""
REGIONS = (2, 9, 1, 5)


@dataclass(frozen=True)
class Look:
    """An image, or features (regions, dim) with boxes (regions, 4) where the model takes them."""

    image: bytes | None = None
    features: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None

    def fields(self, suffix: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.image is not None:
            fields[f"image{suffix}"] = base64.b64encode(self.image).decode()
        if self.features is not None:
            fields[f"features{suffix}"] = base64.b64encode(npy(self.features)).decode()
        if self.boxes is not None:
            fields[f"boxes{suffix}"] = self.boxes.tolist()
        return fields


@dataclass(frozen=True)
class Question:
    """One request: of no look, one, or two."""

    looks: tuple[Look, ...]
    text: str | None

    def fields(self) -> dict[str, Any]:
        """As a JSON body."""
        fields = {} if self.text is None else {"text": self.text}
        for look, suffix in zip(self.looks, ("", "2"), strict=False):
            fields |= look.fields(suffix)
        return fields

    def form(self) -> dict[str, tuple[str | None, bytes]]:
        """As the parts of a multipart form: file name and bytes."""
        parts: dict[str, tuple[str | None, bytes]] = {}
        if self.text is not None:
            parts["text"] = (None, self.text.encode())
        for look, suffix in zip(self.looks, ("", "2"), strict=False):
            if look.image is not None:
                parts[f"image{suffix}"] = ("cover.jpg", look.image)
            for name, array in (("features", look.features), ("boxes", look.boxes)):
                if array is not None:
                    parts[f"{name}{suffix}"] = (f"{name}.npy", npy(array))
        return parts


def npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def questions_of(manifest: Manifest) -> list[Question]:
    """Requests that differ in every size, for one batch."""
    looks = 2 if manifest.task == "reason" else 1
    looks = looks if manifest.image or manifest.regions else 0
    requests = []
    for index, text in enumerate(TEXTS):
        looks_of_item = tuple(look_at(manifest, index + 2 * place) for place in range(looks))
        if manifest.task == "embed" and manifest.text and index % 2:
            looks_of_item = ()
        silent = manifest.text is None or (manifest.task == "embed" and looks_of_item)
        requests.append(Question(looks_of_item, None if silent else text))
    return requests


def look_at(manifest: Manifest, seed: int) -> Look:
    """An image of even seeds, features of odd ones, where the model takes both."""
    if manifest.regions is None or (manifest.image and seed % 2 == 0):
        return Look(image=base64.b64decode(drawn_image(seed)))
    random = np.random.default_rng(seed)
    shape = (fixed_regions(manifest) or REGIONS[seed % len(REGIONS)], manifest.regions.dim)
    features = np.maximum(random.standard_normal(shape), 0).astype(np.float32)
    if not manifest.regions.boxes:
        return Look(features=features)
    low, size = random.uniform(0, 0.5, (2, shape[0], 2))
    boxes = np.concatenate([low, low + size + 0.01], axis=1).astype(np.float32)
    return Look(features=features, boxes=boxes.clip(0, 1))


def fixed_regions(manifest: Manifest) -> int | None:
    """Where a graph takes no other number."""
    dims = [
        tensor.dims[-2]
        for graph in manifest.graphs.values()
        for tensor in graph.inputs
        if tensor.name == "visual"
    ]
    return dims[0] if dims and isinstance(dims[0], int) else None


def without_pictures(answer: Mapping[str, Any], pictures: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in pictures}
