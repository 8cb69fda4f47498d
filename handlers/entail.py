"""Visual entailment: an image and a sentence -> entailment, neutral or contradiction."""

from vlserve.runtime.classify import Classification, ClassifyTask
from vlserve.runtime.inputs import VisualTextFields


class EntailFields(VisualTextFields):
    """What a client sends."""


class Entailment(Classification):
    """Whether the sentence follows from the image."""


class EntailTask(ClassifyTask[EntailFields]):
    """Labels: those of the checkpoint, in its order."""

    fields = EntailFields
    answer = Entailment
