"""The words that every engine, task and backend share.

One request flows as: engine -> Request -> Task.preprocess -> Sample -> Task.tokenise -> Sample
-> Task.collate -> Arrays -> Backend -> Arrays -> Task.postprocess -> Answer. An item that fails
becomes an ItemError at its own place in the batch; nothing else in the batch changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.errors import ErrorCode

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

Arrays = dict[str, NDArray[Any]]
"""Named arrays of one batch; axis 0 is the item."""

Sample = dict[str, NDArray[Any]]
"""Named arrays of one item, without the batch axis."""

Answer = dict[str, Any]
"""JSON-ready task fields of one answer."""


@dataclass(frozen=True)
class Request:
    """One request, whatever engine it came through.

    ``fields`` maps field names to raw values: bytes from a multipart form, or the JSON values
    (str, number, list) of a JSON body, where an image is base64.
    """

    fields: Mapping[str, Any]
    request_id: str = ""


@dataclass(frozen=True)
class ItemError:
    """Why one item of a batch has no answer."""

    code: ErrorCode
    message: str


@dataclass(frozen=True)
class BatchResult:
    """Answers in the order of the requests, and how long each stage took for the whole batch."""

    answers: Sequence[Answer | ItemError]
    texts: Sequence[str] = ()
    """Each answer as JSON; empty of an ItemError."""
    stage_ms: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """Runs one graph. Thread-safe; raises whatever the graph's engine raises."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run named arrays of a batch through the graph; axis 0 of the outputs is the batch."""
        ...


def stack(samples: Sequence[Sample]) -> Arrays:
    """Batch samples of equal shapes: (shape) each -> (batch, shape)."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
