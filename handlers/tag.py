"""Tagging: a cover image (or its features) and its title -> tags with scores, best first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from vlserve.runtime.body import WholeNumber
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.inputs import VisualTextFields, VisualTextInputs
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import best, check_labels, check_top_k, sigmoid, softmax
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample


class TagFields(VisualTextFields):
    """What a client sends."""

    top_k: WholeNumber | None = None


class Tag(BaseModel):
    tag: str
    score: float
    """A probability: of a softmax over the labels, or the label's own sigmoid when multi-label."""


class Tags(BaseModel):
    """Best first."""

    tags: list[Tag]


class TagTask(Task[TagFields]):
    """Graph inputs: those of vlserve.runtime.inputs that the graph lists. Output: ``logits``
    float32 (batch, labels)."""

    fields = TagFields
    answer = Tags

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if not manifest.labels:
            raise ManifestInvalid("task tag needs labels in the manifest")
        check_labels(manifest)
        self._inputs = VisualTextInputs(manifest, root, backends)

    def preprocess(self, fields: TagFields) -> Sample:
        check_top_k(fields.top_k, len(self.manifest.labels))
        return self._inputs.sample(fields)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return self._inputs.tokenise(samples)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return self._inputs.collate(samples)

    def postprocess(self, outputs: Arrays, index: int, fields: TagFields) -> Answer:
        logits, labels = outputs["logits"][index], self.manifest.labels
        scores = sigmoid(logits) if self.manifest.multi_label else softmax(logits)
        found = best(scores, fields.top_k)
        return {"tags": [{"tag": labels[one], "score": float(scores[one])} for one in found]}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {tag["tag"]: tag["score"] for tag in answer["tags"]}
