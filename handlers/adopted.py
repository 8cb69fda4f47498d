"""Adopted: whatever a handler of TorchServe takes -> whatever it returns."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.exchange import ExchangeAnswer, ExchangeFields, answer_of
from vlserve.runtime.legacy_answer import HandlerFailed
from vlserve.runtime.legacy_handler import LegacyHandler
from vlserve.runtime.legacy_request import legacy_request
from vlserve.runtime.manifest import LEGACY, Manifest
from vlserve.runtime.task import Surroundings, Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample

_REQUEST, _ANSWER = "request", "answer"


class AdoptedTask(Task[ExchangeFields]):
    """Calls the handler in the archive's folder legacy/, which `start` imports: nothing of it runs
    before."""

    fields = ExchangeFields
    answer = ExchangeAnswer
    warms_up = False

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if manifest.adopted is None:
            raise ValueError("the manifest does not say what was adopted")
        self._adopted = manifest.adopted
        self._handler: LegacyHandler | None = None
        self._numbers = itertools.count(1)  # of requests, which several threads may read

    def start(self, around: Surroundings) -> None:
        name = f"{self.manifest.model}-{self.manifest.version}"
        self._handler = LegacyHandler(self.root / LEGACY, name, self._adopted, around)

    def preprocess(self, fields: ExchangeFields) -> Sample:
        request = legacy_request(fields, self._adopted.decodes, str(next(self._numbers)))
        return {_REQUEST: _objects([request])}

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return {_REQUEST: np.concatenate([sample[_REQUEST] for sample in samples])}

    def infer(self, arrays: Arrays) -> Arrays:
        """A batch that fails raises, and the pipeline tries its halves; a single request that fails
        is answered by its own error."""
        if self._handler is None:
            raise RuntimeError("the handler was not started")
        requests = list(arrays[_REQUEST])
        try:
            answers = self._handler.answer(requests)
        except HandlerFailed as error:
            if len(requests) > 1 and error.splits and self._adopted.isolates:
                raise
            answers = [error.answer()] * len(requests)
        return {_ANSWER: _objects(answers)}

    def postprocess(self, outputs: Arrays, index: int, fields: ExchangeFields) -> Answer:
        return answer_of(outputs[_ANSWER][index])

    def scores(self, answer: Answer) -> Mapping[str, float]:
        """Return what is a number in an answer of names and numbers, as TorchServe's own
        classifiers give, highest first."""
        try:
            content = json.loads(answer.get("text") or "")
        except (ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        numbers = {
            name: float(value)
            for name, value in content.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return dict(sorted(numbers.items(), key=lambda entry: -entry[1]))


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return a one-dimensional array of any objects: numpy would make rows of their entries."""
    array = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        array[at] = value
    return array
