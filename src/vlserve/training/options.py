"""What every training run may be told."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlserve.errors import SettingsError
from vlserve.runtime.clean_text import Cleaning
from vlserve.runtime.manifest import ImageInput
from vlserve.training.optimisers import OptimiserName, ScheduleName

PAD_ID, UNKNOWN_ID = 0, 1
"""Of a vocabulary that is built from training titles."""
LATER = (
    "text_cleaning",
    "least_epochs",
    "optimiser",
    "schedule",
    "lowest_rate",
    "cycles",
    "step_epochs",
    "accumulate",
    "clip",
    "average_decay",
    "precision",
    "freeze",
    "image_encoder",
    "second_image_encoder",
    "text_layers",
    "layer_decay",
    "focal_gamma",
    "rate_noise",
    "least_answers",
    "augmentation",
    "synonyms",
    "translator",
    "reward_workers",
)
"""Options that runs of earlier versions did not have; at their defaults they are not kept."""


_NO_LABELS = "of taggers alone: pairs have no labels"


class TrainOptions(BaseModel):
    """Options of every family; a recipe adds its own, and may have other defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    idle: ClassVar[Mapping[str, str]] = {}
    """Options that no run of the kind reads, and why: they are refused."""

    epochs: int = Field(default=40, ge=1)
    patience: int = Field(default=10, ge=1)
    """Epochs without a better validation figure until training stops."""
    least_epochs: int = Field(default=1, ge=1)
    """Epochs before which ``patience`` ends nothing."""
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest rate: reached after ``warm_up``, then a cosine down to nothing."""
    warm_up: float = Field(default=0.1, gt=0, lt=1)
    """Share of all steps."""
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """On embeddings and on the inputs of linear layers."""
    penalty: float = Field(default=0.5, gt=0)
    """Of a convex loss: times half the squares of all weights but biases, per training item. Where
    items have several labels, each label is a logistic regression with this penalty."""
    optimiser: OptimiserName = "adamw"
    schedule: ScheduleName = "cosine"
    lowest_rate: float = Field(default=0.0, ge=0)
    """Where the schedules cosine and polynomial end."""
    cycles: int = Field(default=1, ge=1)
    """Of the schedule cosine_with_restarts."""
    step_epochs: int = Field(default=10, ge=1)
    """Epochs after which the schedule step lowers the rate; plateau: where none got better."""
    rate_noise: float = Field(default=0.0, ge=0, lt=1)
    """Each step's rate is off the schedule's by a random share below this; 0: it is not."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients make one step: a step sees batch_size x accumulate items."""
    clip: float = Field(default=1.0, gt=0)
    """The largest norm of a gradient; a longer one is shortened."""
    average_decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the moving average of the weights that is kept; 0: the weights themselves."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: torch's autocast, where it trusts it; weights stay in fp32."""
    freeze: tuple[str, ...] = ()
    """Parts of the network, by the beginnings of their parameters' names, that do not learn."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """A layer's rate is that of the one above it times this."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Sure and right items weigh (1 - p)^gamma in the loss: focal loss; 0: cross-entropy."""
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    class_weight_power: float = Field(default=0.0, ge=0, le=1)
    """Of items with one label each: an item weighs (items of its label)^-power in the loss. 0: all
    weigh alike; 1: all labels do."""
    augment: bool = True
    """Change images and titles at random; not where a frozen part of the network sees them once."""
    image_height: int = Field(default=224, ge=16)
    image_width: int = Field(default=224, ge=16)
    max_length: int = Field(default=64, ge=1)
    """Tokens of a title that count; of a vocabulary of characters, characters."""
    text_cleaning: Cleaning | None = None
    """``invisible``: titles that look the same are read the same, in training and serving."""

    @property
    def image(self) -> ImageInput:
        return ImageInput(height=self.image_height, width=self.image_width)

    def said(self) -> dict[str, Any]:
        """Return the options as a run keeps them: runs of before LATER go on too."""
        fields = type(self).model_fields
        defaults = {x for x in LATER if x in fields and getattr(self, x) == fields[x].default}
        return self.model_dump(mode="json", exclude=defaults)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that a forward pass runs in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    @field_validator("freeze", mode="before")
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        """A text, as from ``--set``, names parts with commas between them."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @property
    def convex(self) -> bool:
        """Whether what is trained is linear in its weights. Then the one optimum is found, on all
        items at once: nothing is random, and the options of gradient steps do not count."""
        return False


class PairOptions(TrainOptions):
    """What a run on pairs may be told."""

    idle: ClassVar[Mapping[str, str]] = {
        "penalty": _NO_LABELS,
        "focal_gamma": _NO_LABELS,
        "class_weight_power": _NO_LABELS,
        "augment": "a frozen part of the network sees each image once, unchanged",
    }

    augment: bool = False
    label_smoothing: float = 0.0


Options = TypeVar("Options", bound=TrainOptions)

DEMO_OPTIONS: Mapping[str, Any] = {
    "text_cleaning": "invisible",
    "epochs": 6,
    "patience": 3,
    "learning_rate": 3e-3,
    "resnet_layers": (1, 1, 1, 1),
    "resnet_width": 16,
    "hidden": 64,
    "embedding_size": 32,
    "max_length": 40,
}
"""For the drawn covers: a network that learns them in less than a minute on two cores."""


def parse_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Values may be strings, as from ``--set key=value``. SettingsError names each that is wrong,
    or that no run of the kind reads."""
    try:
        run_options = kind.model_validate(options)
    except ValidationError as error:
        names = ", ".join(name for name in kind.model_fields if name not in kind.idle)
        wrong = "; ".join(
            f"{item['loc'][0]}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise SettingsError(f"training options: {wrong}. Options are {names}") from error
    refuse(
        f"{name}: {reason}"
        for name, reason in kind.idle.items()
        if name in run_options.model_fields_set
    )
    return run_options


def refuse(reasons: Iterable[str]) -> None:
    """Raise SettingsError where there are options that nothing would read, by name and reason."""
    every = list(reasons)
    if every:
        pronoun = "it" if len(every) == 1 else "them"
        raise SettingsError(f"training options: {'; '.join(every)}: leave {pronoun} out")
