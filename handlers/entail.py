"""Visual entailment: an image and a sentence -> entailment, neutral or contradiction."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from vlserve.runtime.inputs import VisualTextFields, VisualTextInputs
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.scores import best, check_labels, softmax
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, Backend, Sample


class EntailFields(VisualTextFields):
    """What a client sends."""


class Entailment(BaseModel):
    label: str
    """The most probable one."""
    scores: dict[str, float]
    """Probability of each label, the most probable first."""


class EntailTask(Task[EntailFields]):
    """Graph inputs: those of vlserve.runtime.inputs that the graph lists. Output: ``logits``
    (batch, labels)."""

    fields = EntailFields
    answer = Entailment

    def __init__(self, manifest: Manifest, root: Path, backends: Mapping[str, Backend]) -> None:
        super().__init__(manifest, root, backends)
        check_labels(manifest)
        self._inputs = VisualTextInputs(manifest, root, backends)

    def preprocess(self, fields: EntailFields) -> Sample:
        return self._inputs.sample(fields)

    def tokenise(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return self._inputs.tokenise(samples)

    def collate(self, samples: Sequence[Sample]) -> Arrays:
        return self._inputs.collate(samples)

    def postprocess(self, outputs: Arrays, index: int, fields: EntailFields) -> Answer:
        scores, labels = softmax(outputs["logits"][index]), self.manifest.labels
        order = best(scores, len(labels))
        return {
            "label": labels[order[0]],
            "scores": {labels[place]: float(scores[place]) for place in order},
        }

    def scores(self, answer: Answer) -> Mapping[str, float]:
        return dict(answer["scores"])
