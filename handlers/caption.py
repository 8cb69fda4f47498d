"""Captioning: an image (or features of its grid) -> a sentence about it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from vlserve.runtime.decoding_options import MANNER, WritingFields
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.inputs import VisualFields
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task
from vlserve.runtime.text_generation import Writer
from vlserve.runtime.types import Answer, Arrays, Backend, Sample


class CaptionFields(VisualFields, WritingFields):
    """What a client sends."""


class Caption(BaseModel):
    caption: str
    log_prob: float
    """Natural logarithm of the caption's probability by the model itself, all tokens and the end
    together."""


class CaptionTask(Task[CaptionFields]):
    """Graphs: ``encoder``, from those of vlserve.runtime.inputs that it lists to the memory of
    ``step``; see vlserve.runtime.text_generation."""

    fields = CaptionFields
    answer = Caption

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        self._writer = Writer(manifest, root, backends)

    def preprocess(self, fields: CaptionFields) -> Sample:
        return self._writer.manners.sample(fields) | super().preprocess(fields)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        manners = np.stack([sample[MANNER] for sample in samples])
        return super().collate(samples) | {MANNER: manners}

    def infer(self, arrays: Arrays) -> Arrays:
        manners = arrays[MANNER]
        return self._writer.write(self.run("encoder", arrays), len(manners), manners)

    def postprocess(self, outputs: Arrays, index: int, fields: CaptionFields) -> Answer:
        texts = self._writer.texts(outputs, index)
        if not texts:
            raise RequestError(ErrorCode.INFERENCE_FAILED, "the model wrote no caption")
        return {"caption": texts[0].text, "log_prob": texts[0].log_prob}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {answer["caption"]: math.exp(answer["log_prob"])}
