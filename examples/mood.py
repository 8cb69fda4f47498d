"""A task: the mood of a cover with its title, one of the model's labels.

Copy this file to handlers/mood.py of your project: a recipe serves it as `Served(task="mood", …)`.
"""

from vlserve.runtime.classify import Classification, ClassifyTask
from vlserve.runtime.inputs import VisualTextFields


class MoodFields(VisualTextFields):
    """What a client sends: an image (or features of it) and a text."""


class Mood(Classification):
    """The most probable mood, and the probability of each."""


class MoodTask(ClassifyTask[MoodFields]):
    """The graph `model` gives a logit for each label of the manifest."""

    fields = MoodFields
    answer = Mood
