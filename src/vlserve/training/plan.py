"""What a recipe says, beside `vlserve.exporter.recipe.Recipe`, of how its networks are trained.

A recipe that can be trained has an attribute ``training`` with the attributes and methods of
`TrainingPlan`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vlserve.errors import TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.training.options import TrainOptions


@dataclass(frozen=True)
class DataFacts:
    """What a training file shows, for the config.json of a new checkpoint."""

    labels: Sequence[str]
    multi_label: bool
    titles: Sequence[str]
    training: Mapping[str, Any]
    """Where the checkpoint comes from; goes into config.json as it is."""


class TrainingPlan(Protocol):
    """How networks of a family are trained."""

    options: type[TrainOptions]
    """What a run may be told: the options of every training, and the family's own."""
    frozen: str | None
    """Name of the network's submodule that is not trained, if any. Its outputs, a dictionary of
    tensors (batch, …), are computed once for what they depend on, an image or a title, and are
    inputs of ``trained`` by name."""
    trained: str
    """Name of the submodule that is trained; empty for the whole network."""

    def new_config(self, options: Any, facts: DataFacts) -> dict[str, Any]:
        """Return config.json of a new checkpoint."""
        ...

    def pretrained(self, options: Any) -> Mapping[str, Tensor]:
        """Return every tensor of ``frozen``, by its name there; asked only where there is one.
        TrainingError says what to install where the weights are not at hand."""
        ...


@dataclass(frozen=True)
class Parts:
    """A network, and what of it is frozen and what is trained."""

    network: nn.Module
    frozen: nn.Module | None
    trained: nn.Module
    prefix: str
    """Of the trained part's names in the network."""

    def checkpoint(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the network's tensors, with those of ``module`` for its trained part."""
        own = {f"{self.prefix}{name}": x for name, x in module.state_dict().items()}
        return {**self.network.state_dict(), **own}


def training_plan(recipe: Recipe) -> TrainingPlan:
    """Return the plan of a recipe. TrainingError where a recipe says nothing of how it is
    trained."""
    plan: TrainingPlan | None = getattr(recipe, "training", None)
    if plan is None:
        raise TrainingError(f"networks of the family {recipe.spec.family} cannot be trained here")
    return plan


def parts_of(network: nn.Module, plan: TrainingPlan) -> Parts:
    """Freeze what ``plan`` says, which no longer learns."""
    frozen = network.get_submodule(plan.frozen) if plan.frozen else None
    if frozen is not None:
        frozen.eval().requires_grad_(False)
    prefix = f"{plan.trained}." if plan.trained else ""
    return Parts(network, frozen, network.get_submodule(plan.trained), prefix)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
