"""Embedding: an image or a text -> a unit vector of the space that both share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from vlserve.runtime.body import TextField
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.inputs import TextInputs, VisualFields, VisualInputs
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import finite
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample

ROWS = {"image": "image_rows", "text": "text_rows"}
"""Graph -> the array that says which items of the batch are its."""


class EmbedFields(VisualFields):
    """What a client sends: an image, or its features, or a text."""

    text: TextField | None = None


class Embedding(BaseModel):
    embedding: list[float]
    """Of length 1."""
    dim: int


class EmbedTask(Task[EmbedFields]):
    """Graphs: ``image`` with output ``image_embedding`` (batch, dim), ``text`` with
    ``text_embedding``, each only where there is one."""

    fields = EmbedFields
    answer = Embedding

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if not ROWS.keys() & manifest.graphs.keys():
            raise ManifestInvalid("task embed needs a graph image or text")
        self._visual = VisualInputs(manifest, backends) if "image" in manifest.graphs else None
        self._text = TextInputs(manifest, root) if "text" in manifest.graphs else None

    def open_inputs(self) -> None:
        """Leave the inputs to the steps below: a request brings one of two kinds."""

    def preprocess(self, fields: EmbedFields) -> Sample:
        visual = any(x is not None for x in (fields.image, fields.features, fields.boxes))
        if visual == (fields.text is not None):
            raise _invalid("send an image, its features, or a text: one of them")
        if fields.text is not None:
            if self._text is None:
                raise _invalid("text: this model embeds images alone")
            return self._text.sample(fields.text)
        if self._visual is None:
            raise _invalid("image: this model embeds texts alone")
        return self._visual.sample(fields)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return self._text.tokenise(samples) if self._text else samples

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        """Return arrays, those of each graph with the rows that are its: of ``image_rows`` and
        ``text_rows``."""
        texts = np.array(["text_ids" in sample for sample in samples])
        arrays: Arrays = {
            "image_rows": np.flatnonzero(~texts),
            "text_rows": np.flatnonzero(texts),
        }
        for inputs, rows in ((self._visual, "image_rows"), (self._text, "text_rows")):
            if inputs is not None and len(arrays[rows]):
                arrays |= inputs.collate([samples[row] for row in arrays[rows]])
        return arrays

    def infer(self, arrays: Arrays) -> Arrays:
        by_row: dict[int, Any] = {}
        for graph, rows in ROWS.items():
            if len(arrays[rows]):
                vectors = self.run(graph, arrays)[f"{graph}_embedding"]
                by_row |= dict(zip(arrays[rows].tolist(), vectors, strict=True))
        return {"embedding": np.stack([by_row[row] for row in range(len(by_row))])}

    def postprocess(self, outputs: Arrays, index: int, fields: EmbedFields) -> Answer:
        vector = finite(outputs["embedding"][index])
        length = np.linalg.norm(vector)
        if not length:
            raise RequestError(ErrorCode.INFERENCE_FAILED, "the model's vector has no direction")
        return {"embedding": (vector / length).tolist(), "dim": len(vector)}

    @classmethod
    def examples(cls, drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
        (everything,) = super().examples(drawn)
        text = {name: everything.pop(name) for name in ("text",) if name in everything}
        return [fields for fields in (everything, text) if fields]


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorCode.FIELD_INVALID, message)
