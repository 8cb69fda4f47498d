"""Grounding: an image (or its regions) and a phrase -> where in the image the phrase is."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from vlserve.runtime.body import Switch, WholeNumber
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.heatmap import heat_map_png, overlay_png, peak_of, scaled
from vlserve.runtime.inputs import VisualTextFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import best, check_top_k, finite, sigmoid, softmax
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample

REGIONS, MAP, WORD_MAPS = "region_scores", "map", "word_maps"
"""Outputs of the graph, of which it has one."""


class GroundFields(VisualTextFields):
    """What a client sends; ``text`` is the phrase. ``top_k``: regions in the answer. ``overlay``:
    lay the heat map over the image."""

    top_k: WholeNumber | None = None
    overlay: Switch = False


class Region(BaseModel):
    box: list[float]
    """x1, y1, x2, y2 as fractions of width and height."""
    score: float
    """From 0 to 1."""


class Peak(BaseModel):
    """Fractions of width and height."""

    x: float
    y: float


class Ground(BaseModel):
    """``regions``, best first, of a model of regions; the others of one with a heat map."""

    regions: list[Region] | None = None
    probability: float | None = None
    """That image and phrase belong together."""
    similarity: float | None = None
    """Cosine over temperature of both, where the model has no probability."""
    peak: Peak | None = None
    """Null where nothing speaks for the phrase."""
    grid: list[list[float]] | None = None
    """The heat map's values, row by row, from 0 to 1, the largest 1."""
    heat_map: str | None = None
    """PNG as base64, of the size that the model sees: the lighter, the likelier."""
    overlay: str | None = None
    """PNG as base64: the image, coloured where the phrase is."""


class GroundTask(Task[GroundFields]):
    """Graph ``model`` with output ``region_scores`` (batch, regions); or ``match_logits``
    (batch, 2) and ``word_maps`` (batch, text, rows, columns); or ``similarity`` (batch, 1) and
    ``map`` (batch, rows, columns)."""

    fields = GroundFields
    answer = Ground
    pictures = frozenset({"heat_map", "overlay"})

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        outputs = {tensor.name for tensor in manifest.graphs["model"].outputs}
        self._of_regions = REGIONS in outputs
        if self._of_regions and not (manifest.regions and manifest.regions.boxes):
            raise ManifestInvalid("task ground needs boxes of the regions that it scores")
        if not self._of_regions and not (manifest.image and outputs & {MAP, WORD_MAPS}):
            raise ManifestInvalid("task ground needs region_scores, or an image and a map of it")

    def preprocess(self, fields: GroundFields) -> Sample:
        if self._of_regions and fields.overlay:
            raise RequestError(ErrorCode.FIELD_INVALID, "overlay: this model answers with boxes")
        if not self._of_regions and fields.top_k is not None:
            raise RequestError(ErrorCode.FIELD_INVALID, "top_k: this model answers with a map")
        if self.manifest.regions:
            check_top_k(fields.top_k, self.manifest.regions.max_regions)
        return super().preprocess(fields)

    def infer(self, arrays: Arrays) -> Arrays:
        """Return the graph's outputs, and what tells padding from the rest."""
        names = ("boxes", "visual_mask", "text_mask")
        return self.run("model", arrays) | {name: arrays[name] for name in names if name in arrays}

    def postprocess(self, outputs: Arrays, index: int, fields: GroundFields) -> Answer:
        item = {name: array[index] for name, array in outputs.items()}
        return self._regions(item, fields) if self._of_regions else self._map(item, fields)

    def _regions(self, item: Sample, fields: GroundFields) -> Answer:
        first = 1 if self.manifest.options.get("global_region") else 0
        real = int(item["visual_mask"].sum())
        scores = sigmoid(item[REGIONS][first:real])
        boxes = item["boxes"][first:real, :4].tolist()
        places = best(scores, fields.top_k)
        return {"regions": [{"box": boxes[at], "score": float(scores[at])} for at in places]}

    def _map(self, item: Sample, fields: GroundFields) -> Answer:
        assert self.manifest.image is not None
        answer: Answer = {}
        if WORD_MAPS in item:
            words = item["text_mask"] == 1
            grid = scaled(finite(item[WORD_MAPS])[words].mean(axis=0))
            answer["probability"] = float(softmax(item["match_logits"])[-1])
        else:
            grid = scaled(finite(item[MAP]))
            answer["similarity"] = float(finite(item["similarity"])[0])
        answer |= {
            "peak": peak_of(grid),
            "grid": np.round(grid, 4).tolist(),
            "heat_map": heat_map_png(grid, self.manifest.image),
        }
        if fields.overlay:
            assert fields.image is not None
            answer["overlay"] = overlay_png(grid, fields.image, self.manifest.image)
        return answer
