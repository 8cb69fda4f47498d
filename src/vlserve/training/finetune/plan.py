"""What a recipe says of how its networks go on learning: its attribute ``finetuning``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlserve.errors import TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.training.augmentation.presets import AugmentationName
from vlserve.training.finetune.heads import (
    CLASSES,
    Fitted,
    of_parts,
    with_classifier,
    with_decoder,
    with_layers_for_two_images,
)
from vlserve.training.objectives.encoders import AlbefEncoders, BlipEncoders, PairEncoders
from vlserve.training.objectives.retrieve import ALBEF, BLIP, RetrievalRules
from vlserve.training.options import TrainOptions

Objective = Literal[
    "retrieve",
    "entail",
    "reason",
    "answer",
    "caption",
    "reward",
    "tag",
    "match",
    "ground",
    "pretrain",
]


_CONFIG = "config.json beside the checkpoint decides it"
OF_TAGGERS: Mapping[str, str] = {
    "image_height": f"{_CONFIG} (image)",
    "image_width": f"{_CONFIG} (image)",
    "max_length": _CONFIG,
    "text_cleaning": _CONFIG,
    "augment": "of taggers without --from; augmentation names what changes items here",
    "penalty": "of linear heads, which are trained without --from",
}
"""Options that no run from a checkpoint reads, and what decides instead."""


class FinetuneOptions(TrainOptions):
    """What a run from a checkpoint may be told; defaults are those of a fine-tuning. Those that are
    idle stand in records alone."""

    idle: ClassVar[Mapping[str, str]] = OF_TAGGERS

    epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=5, ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=1e-5, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    augment: bool = False
    queue_size: int = Field(default=1024, ge=2)
    """Of retrieve and pretrain: pairs of earlier steps that a pair is told apart from."""
    momentum: float = Field(default=0.995, ge=0, lt=1)
    """Of retrieve and pretrain: how much of the teacher stays in a step."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Of retrieve and pretrain: the teacher's share in the targets, raised to over the first epoch
    (the first two of BLIP's pretraining)."""
    least_answers: int = Field(default=9, ge=1)
    """Of answer, where config.json names no answers: how often the training file must give one."""
    augmentation: AugmentationName | None = None
    """Changes of training images and texts, by the name of `vlserve.training.augmentation`."""
    synonyms: Path | None = None
    """Of augmentation: a file of words that may stand for each other, with tabs between them."""
    translator: Path | None = None
    """Of augmentation: a Python file whose ``translate(texts)`` gives back as many other texts;
    half of the texts go through it."""
    reward_workers: int = Field(default=0, ge=0, le=64)
    """Of reward: processes that score captions; 0: the run's own."""

    def rules(self, family: RetrievalRules) -> RetrievalRules:
        """A family's rules with this run's momentum."""
        return replace(family, momentum=self.momentum)


class FinetunePlan(Protocol):
    """What every kind of plan says."""

    @property
    def objectives(self) -> tuple[Objective, ...]: ...

    @property
    def shown(self) -> tuple[str, ...]:
        """Fields of config.json that tensors show: another objective may find others."""
        ...

    @property
    def of_task(self) -> tuple[str, ...]:
        """Fields of config.json whose defaults are the task's own."""
        ...

    def task(self, objective: Objective) -> str:
        """The task of the checkpoint that an objective leaves."""
        ...

    def fitted(
        self, state: Mapping[str, Tensor], objective: Objective | None, classes: int
    ) -> Fitted:
        """A checkpoint's tensors for an objective, and the names of new ones; ``classes``: of a new
        head, 0 where config.json names none."""
        ...

    def has_head(self, network: nn.Module, config: Mapping[str, Any], objective: Objective) -> bool:
        """Whether a network that was built of a config can learn an objective."""
        ...


@dataclass(frozen=True)
class CaptionerPlan:
    """Of S2 and M2. ``masked``: whether the encoder takes a mask, and images of any number of
    rows."""

    masked: bool
    objectives: tuple[Objective, ...] = ("caption", "reward")
    shown: tuple[str, ...] = ()
    of_task: tuple[str, ...] = ()

    def task(self, objective: Objective) -> str:
        return "caption"

    def fitted(
        self, state: Mapping[str, Tensor], objective: Objective | None, classes: int
    ) -> Fitted:
        return dict(state), ()

    def has_head(self, network: nn.Module, config: Mapping[str, Any], objective: Objective) -> bool:
        return True


@dataclass(frozen=True)
class VisionTextPlan:
    """Of BLIP and ALBEF. ``start``: the token that an answer or a caption begins with. ``parts``
    of the network that each task has."""

    family: Literal["blip", "albef"]
    objectives: tuple[Objective, ...]
    parts: Mapping[str, tuple[str, ...]]
    start: str
    smoothing: float
    """Of the words of answers and captions, unless the options say another."""
    tokenizer: Callable[[Mapping[str, Any]], Tokenizer]
    """Of a config: ids without special tokens."""
    caption: Callable[[str], str] = str
    """A caption of the data -> what is learnt of it."""
    shown: tuple[str, ...] = ("encoder", "decoder", "embedding", "classes")
    of_task: tuple[str, ...] = ()

    @property
    def rules(self) -> RetrievalRules:
        return BLIP if self.family == "blip" else ALBEF

    def task(self, objective: Objective) -> str:
        return "match" if objective in ("retrieve", "pretrain") else objective

    def fitted(
        self, state: Mapping[str, Tensor], objective: Objective | None, classes: int
    ) -> Fitted:
        if objective in (None, "pretrain"):
            return dict(state), ()
        assert objective is not None
        new: tuple[str, ...] = ()
        if self.family == "albef" and objective == "answer":
            state, new = with_decoder(state)
        if self.family == "albef" and objective == "reason":
            state = with_layers_for_two_images(state)
        tensors = of_parts(state, self.parts[self.task(objective)])
        return (
            with_classifier(tensors, CLASSES[objective]) if objective in CLASSES else (tensors, new)
        )

    def has_head(self, network: nn.Module, config: Mapping[str, Any], objective: Objective) -> bool:
        learns_to_write = self.family == "blip" and objective == "pretrain"
        if learns_to_write and not hasattr(network, "text_decoder"):
            return False
        return bool(self.task(objective) == config["task"])

    def encoders(self, network: Any, config: Mapping[str, Any]) -> PairEncoders:
        """The network as the objectives of pairs see it."""
        if self.family == "albef":
            return AlbefEncoders(network)
        enc_id: Any = self.tokenizer(config).token_to_id("[ENC]")
        return BlipEncoders(network, enc_id)


def plan_of(recipe: Recipe, objective: str | None) -> tuple[FinetunePlan, Objective | None]:
    """The plan of a recipe, and the objective if it has that one; None: by the checkpoint's task.
    TrainingError where there is no such thing."""
    plan: FinetunePlan | None = getattr(recipe, "finetuning", None)
    if plan is None:
        raise TrainingError(
            f"networks of the family {recipe.spec.family} are not trained from a checkpoint here: "
            "leave out --from"
        )
    objectives: dict[str, Objective] = {name: name for name in plan.objectives}
    if objective is not None and objective not in objectives:
        raise TrainingError(
            f"{recipe.spec.family} has no objective {objective}: there are {', '.join(objectives)}"
        )
    return plan, objectives[objective] if objective else None
