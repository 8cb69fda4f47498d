"""Matching: an image (or its features) and a text -> how well they go together."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from vlserve.runtime.errors import ManifestInvalid
from vlserve.runtime.inputs import VisualTextFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import finite, sigmoid, softmax
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend

GRAPHS = ("image", "text")
"""Run before ``fusion``, where there are any."""
RANKED_BY = ("match_logit", "match_logit + cosine")
"""What the option ``retrieval_score`` may say."""


class MatchFields(VisualTextFields):
    """What a client sends."""


class Match(BaseModel):
    probability: float
    """That image and text belong together."""
    itm_score: float
    """What candidates are ranked by: higher is better, without bounds."""
    cosine: float | None = None
    """Of both unit vectors, from -1 to 1; where the model has them."""


class MatchTask(Task[MatchFields]):
    """Graphs: ``fusion`` with output ``match_logits`` (batch, 2), the second of matching, or
    (batch, 1); before it ``image`` and ``text``, whose outputs it may take, with
    ``image_embedding`` and ``text_embedding`` (batch, dim) where the model has such a space."""

    fields = MatchFields
    answer = Match

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if "fusion" not in manifest.graphs:
            raise ManifestInvalid("task match needs a graph fusion")
        self._ranked_by = manifest.options.get("retrieval_score")
        if self._ranked_by not in RANKED_BY:
            raise ManifestInvalid(f"options retrieval_score: must be one of {RANKED_BY}")

    def infer(self, arrays: Arrays) -> Arrays:
        for graph in GRAPHS:
            if graph in self.manifest.graphs:
                arrays = arrays | self.run(graph, arrays)
        outputs = {"match_logits": self.run("fusion", arrays)["match_logits"]}
        if "image_embedding" in arrays and "text_embedding" in arrays:
            pairs = arrays["image_embedding"].astype(np.float64) * arrays["text_embedding"]
            outputs["cosine"] = pairs.sum(axis=1)
        return outputs

    def postprocess(self, outputs: Arrays, index: int, fields: MatchFields) -> Answer:
        logits = finite(outputs["match_logits"][index])
        probability = sigmoid(logits)[0] if len(logits) == 1 else softmax(logits)[-1]
        answer = {"probability": float(probability), "itm_score": float(logits[-1])}
        if "cosine" in outputs:
            answer["cosine"] = float(finite(outputs["cosine"][index]))
            if self._ranked_by == "match_logit + cosine":
                answer["itm_score"] += answer["cosine"]
        return answer

    def scores(self, answer: Answer) -> Mapping[str, float]:
        scores = {"match": answer["probability"], "no match": 1 - answer["probability"]}
        return dict(sorted(scores.items(), key=lambda entry: -entry[1]))
