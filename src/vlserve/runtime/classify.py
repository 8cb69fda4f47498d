"""Tasks that only classify: a graph ``model`` with a logit for each label of the manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import best, check_labels, probabilities
from vlserve.runtime.task import Fields, Task
from vlserve.runtime.types import Answer, Arrays, Backend


class Classification(BaseModel):
    """One label of several, and how probable each is."""

    label: str
    """The most probable one."""
    scores: dict[str, float]
    """Probability of each label, the most probable first."""


class ClassifyTask(Task[Fields]):
    """Graph ``model``, with those inputs of vlserve.runtime.inputs that it lists and the output
    ``logits`` float32 (batch, labels). A task with an answer of its own overrides ``answer``,
    ``postprocess`` and ``scores``."""

    answer: ClassVar[type[BaseModel]] = Classification

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        """Open the task. Raises ManifestInvalid where labels and logits are not as many."""
        check_labels(manifest)
        super().__init__(manifest, root, backends)

    def ranked(self, outputs: Arrays, index: int, top_k: int | None = None) -> dict[str, float]:
        """Return the labels of item ``index`` with their probabilities, best first: the ``top_k``
        best, or all."""
        labels = self.manifest.labels
        scores = probabilities(outputs["logits"][index], self.manifest)
        places = best(scores, len(labels) if top_k is None else top_k)
        return {labels[place]: float(scores[place]) for place in places}

    def postprocess(self, outputs: Arrays, index: int, fields: Fields) -> Answer:
        """Return the most probable label and the probability of each."""
        scores = self.ranked(outputs, index)
        return {"label": next(iter(scores)), "scores": scores}

    def scores(self, answer: Answer) -> Mapping[str, float]:
        """Return the probability of each label."""
        return dict(answer["scores"])
