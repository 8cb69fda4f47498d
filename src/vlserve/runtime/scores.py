"""Logits -> scores, and the best of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Float64Array

DEFAULT_TOP_K = 5


def finite(logits: NDArray[Any]) -> Float64Array:
    """Return the values in float64. RequestError (INFERENCE_FAILED) unless all are finite."""
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise RequestError(ErrorCode.INFERENCE_FAILED, "the model's scores are not finite")
    return values


def softmax(logits: NDArray[Any]) -> Float64Array:
    """Return probabilities (n,) of logits (n,)."""
    values = finite(logits)
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def sigmoid(logits: NDArray[Any]) -> Float64Array:
    """Return a probability for each."""
    values = finite(logits)
    # exp never sees a positive number, so it cannot overflow
    weights = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + weights), weights / (1 + weights))


def probabilities(logits: NDArray[Any], manifest: Manifest) -> Float64Array:
    """Return the probability of each label, (labels,): of a softmax, or each label's own sigmoid
    where the model is multi-label."""
    return sigmoid(logits) if manifest.multi_label else softmax(logits)


def best(scores: Float64Array, top_k: int | None) -> list[int]:
    """Return places of the ``top_k`` largest (5 where it is None), best first; ties keep their
    order."""
    order = np.argsort(-scores, kind="stable")[: DEFAULT_TOP_K if top_k is None else top_k]
    return [int(place) for place in order]


def check_top_k(top_k: int | None, choices: int) -> None:
    """Raise RequestError (FIELD_INVALID) unless there are so many ``choices``."""
    if top_k is not None and not 1 <= top_k <= choices:
        raise RequestError(ErrorCode.FIELD_INVALID, f"top_k: must be from 1 to {choices}")


def check_labels(manifest: Manifest) -> None:
    """Raise ManifestInvalid unless the graph ``model`` has a logit for each label, and an output so
    called."""
    if not manifest.labels:
        raise ManifestInvalid(f"task {manifest.task} needs labels in the manifest")
    graph = manifest.graphs.get("model")
    if graph is None:
        raise ManifestInvalid(f"task {manifest.task} needs a graph model")
    logits = {tensor.name: tensor.dims[-1] for tensor in graph.outputs}.get("logits")
    if logits != len(manifest.labels):
        raise ManifestInvalid(f"{len(manifest.labels)} labels, but logits for {logits}")
