"""Tagging: a cover image (or its features) and its title -> tags with scores, best first."""

from collections.abc import Mapping

from pydantic import BaseModel

from vlserve.runtime.body import WholeNumber
from vlserve.runtime.classify import ClassifyTask
from vlserve.runtime.inputs import VisualTextFields
from vlserve.runtime.scores import DEFAULT_TOP_K, check_top_k
from vlserve.runtime.types import Answer, Arrays, Sample


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


class TagTask(ClassifyTask[TagFields]):
    """The ``top_k`` best labels, 5 where the request does not say."""

    fields = TagFields
    answer = Tags

    def preprocess(self, fields: TagFields) -> Sample:
        check_top_k(fields.top_k, len(self.manifest.labels))
        return super().preprocess(fields)

    def postprocess(self, outputs: Arrays, index: int, fields: TagFields) -> Answer:
        scores = self.ranked(outputs, index, fields.top_k or DEFAULT_TOP_K)
        return {"tags": [{"tag": tag, "score": score} for tag, score in scores.items()]}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {tag["tag"]: tag["score"] for tag in answer["tags"]}
