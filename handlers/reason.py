"""Reasoning: two images (or features of both) and a sentence -> is it true of them?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from vlserve.runtime.body import BoxesField, FeaturesField, ImageField
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.inputs import TextInputs, VisualInputs, VisualTextFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import check_labels, softmax
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample

TRUE, FALSE = "true", "false"


class ReasonFields(VisualTextFields):
    """What a client sends: ``image`` and ``image2``, or ``features`` and ``features2``; the
    sentence may call them left and right."""

    image2: ImageField | None = None
    features2: FeaturesField | None = None
    boxes2: BoxesField | None = None


class Truth(BaseModel):
    answer: bool
    score: float
    """Probability that the sentence is true."""


class ReasonTask(Task[ReasonFields]):
    """Graph inputs: those of vlserve.runtime.inputs that the graph lists, the visual ones with an
    axis of 2 after the batch. Output: ``logits`` (batch, 2)."""

    fields = ReasonFields
    answer = Truth

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        check_labels(manifest)
        if set(manifest.labels) != {TRUE, FALSE}:
            raise ManifestInvalid("task reason needs the labels true and false")
        self._visual = VisualInputs(manifest, backends)
        self._text = TextInputs(manifest, root)

    def preprocess(self, fields: ReasonFields) -> Sample:
        first = self._visual.sample(fields)
        second = self._visual.sample_of(fields.image2, fields.features2, fields.boxes2, suffix="2")
        return self._visual.pair(first, second) | self._text.sample(fields.text)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return self._text.tokenise(samples)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return self._visual.collate(samples) | self._text.collate(samples)

    def postprocess(self, outputs: Arrays, index: int, fields: ReasonFields) -> Answer:
        scores = softmax(outputs["logits"][index])
        true = self.manifest.labels.index(TRUE)
        return {"answer": bool(scores[true] > scores[1 - true]), "score": float(scores[true])}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        scores = {TRUE: answer["score"], FALSE: 1 - answer["score"]}
        return dict(sorted(scores.items(), key=lambda one: -one[1]))
