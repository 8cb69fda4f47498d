"""Reasoning: two images (or features of both) and a sentence -> is it true of them?"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from vlserve.runtime.classify import ClassifyTask
from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.inputs import PairTextFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Answer, Arrays, Backend

TRUE, FALSE = "true", "false"


class ReasonFields(PairTextFields):
    """What a client sends: ``image`` and ``image2``, or ``features`` and ``features2``; the
    sentence may call them left and right."""


class Truth(BaseModel):
    answer: bool
    score: float
    """Probability that the sentence is true."""


class ReasonTask(ClassifyTask[ReasonFields]):
    """Labels true and false; the visual inputs of the graph have an axis of 2 after the batch."""

    fields = ReasonFields
    answer = Truth

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if set(manifest.labels) != {TRUE, FALSE}:
            raise ManifestInvalid("task reason needs the labels true and false")

    def postprocess(self, outputs: Arrays, index: int, fields: ReasonFields) -> Answer:
        scores = self.ranked(outputs, index)
        return {"answer": scores[TRUE] > scores[FALSE], "score": scores[TRUE]}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        scores = {TRUE: answer["score"], FALSE: 1 - answer["score"]}
        return dict(sorted(scores.items(), key=lambda entry: -entry[1]))
