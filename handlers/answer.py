"""Answering: an image (or its features) and a question -> answers with scores, best first."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from vlserve.runtime.body import WholeNumber
from vlserve.runtime.inputs import VisualTextFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import best, check_labels, check_top_k, finite, probabilities
from vlserve.runtime.task import Task
from vlserve.runtime.text_generation import AnswerRanking, Writer
from vlserve.runtime.types import Answer, Arrays, Backend, Sample


class AnswerFields(VisualTextFields):
    """What a client sends; ``text`` is the question."""

    top_k: WholeNumber | None = None


class ScoredAnswer(BaseModel):
    answer: str
    score: float
    """From 0 to 1: a probability, or, of an answer that is written, the geometric mean of its
    tokens' probabilities."""


class Answers(BaseModel):
    """Best first."""

    answers: list[ScoredAnswer]


class AnswerTask(Task[AnswerFields]):
    """One of three kinds of models:

    - a classifier: graph ``model`` with output ``logits`` (batch, labels), labels are answers
    - one that ranks: ``encoder``, ``step`` and ``score``, labels are answers
    - one that writes: ``encoder`` and ``step``
    """

    fields = AnswerFields
    answer = Answers

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        self._ranking: AnswerRanking | None = None
        self._writer: Writer | None = None
        if "model" in manifest.graphs:
            check_labels(manifest)
            self._choices = len(manifest.labels)
        elif "score" in manifest.graphs:
            self._ranking = AnswerRanking(manifest, root, backends)
            self._choices = self._ranking.candidates
        else:
            self._writer = Writer(manifest, root, backends)
            self._choices = self._writer.beams

    def preprocess(self, fields: AnswerFields) -> Sample:
        check_top_k(fields.top_k, self._choices)
        return super().preprocess(fields)

    def infer(self, arrays: Arrays) -> Arrays:
        batch = len(next(iter(arrays.values())))
        if self._ranking:
            return self._ranking.rank(self.run("encoder", arrays), batch)
        if self._writer:
            return self._writer.write(self.run("encoder", arrays), batch)
        return self.run("model", arrays)

    def postprocess(self, outputs: Arrays, index: int, fields: AnswerFields) -> Answer:
        pairs = self._scored(outputs, index)
        places = best(np.array([score for _, score in pairs]), fields.top_k)
        answers = (pairs[place] for place in places)
        return {"answers": [{"answer": answer, "score": score} for answer, score in answers]}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {entry["answer"]: entry["score"] for entry in answer["answers"]}

    def _scored(self, outputs: Arrays, index: int) -> list[tuple[str, float]]:
        labels = self.manifest.labels
        if self._ranking:
            probability = finite(outputs["probability"][index]).tolist()
            rows = outputs["answers"][index]
            return [(labels[at], score) for at, score in zip(rows, probability, strict=True)]
        if self._writer:
            texts = self._writer.texts(outputs, index)
            return [(text.text, float(np.exp(text.score))) for text in texts]
        scores = probabilities(outputs["logits"][index], self.manifest)
        return list(zip(labels, scores.tolist(), strict=True))
