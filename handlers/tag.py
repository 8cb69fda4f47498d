"""Tagging: a cover image and its title -> tags with scores, best first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlserve.runtime.body import ImageField, RequestFields, TextField, WholeNumber
from vlserve.runtime.contract import Answer, Arrays, Backend, Sample
from vlserve.runtime.errors import ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task
from vlserve.runtime.text import check_size, load_tokenizer

DEFAULT_TOP_K = 5


class TagFields(RequestFields):
    """What a client sends."""

    image: ImageField
    text: TextField
    top_k: WholeNumber | None = None


class TagTask(Task[TagFields]):
    """Graph inputs: ``image`` float32 (batch, 3, height, width), ``text_ids`` int64 (batch, text),
    ``text_length`` int64 (batch,), each only where the graph lists it. Output: ``logits`` float32
    (batch, labels). Scores are probabilities: softmax, or one sigmoid a label when multi-label.
    """

    fields = TagFields

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        if manifest.image is None or manifest.text is None or not manifest.labels:
            raise ManifestInvalid("task tag needs image, text and labels in the manifest")
        graph = manifest.graphs["model"]
        logits = {tensor.name: tensor.dims[-1] for tensor in graph.outputs}.get("logits")
        if logits != len(manifest.labels):
            raise ManifestInvalid(f"{len(manifest.labels)} labels, but logits for {logits}")
        self._image = manifest.image
        self._text = manifest.text
        self._tokenizer = load_tokenizer(manifest.text, root)
        self._inputs = {tensor.name for tensor in graph.inputs}

    def preprocess(self, fields: TagFields) -> Sample:
        labels = len(self.manifest.labels)
        if fields.top_k is not None and not 1 <= fields.top_k <= labels:
            raise RequestError(ErrorCode.FIELD_INVALID, f"top_k: must be from 1 to {labels}")
        check_size(fields.text, self._text)
        return {
            "image": decode(fields.image, self._image),
            "text_ids": self._tokenizer.ids(fields.text),
        }

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        text = self._tokenizer.pad([sample["text_ids"] for sample in samples])
        arrays: Arrays = {
            "image": np.stack([sample["image"] for sample in samples]),
            "text_ids": text.ids,
            "text_length": text.lengths,
        }
        return {name: array for name, array in arrays.items() if name in self._inputs}

    def postprocess(self, outputs: Arrays, index: int, fields: TagFields) -> Answer:
        logits = outputs["logits"][index].astype(np.float64)
        if not np.isfinite(logits).all():
            raise RequestError(ErrorCode.INFERENCE_FAILED, "the model's scores are not finite")
        scores = _sigmoid(logits) if self.manifest.multi_label else _softmax(logits)
        best = np.argsort(-scores, kind="stable")  # ties keep the order of the labels
        top_k = fields.top_k or min(DEFAULT_TOP_K, len(self.manifest.labels))
        return {
            "tags": [
                {"tag": self.manifest.labels[label], "score": float(scores[label])}
                for label in best[:top_k]
            ]
        }

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return {tag["tag"]: tag["score"] for tag in answer["tags"]}


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp never sees a positive number, so it cannot overflow
    weights = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + weights), weights / (1 + weights))
