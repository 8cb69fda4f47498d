"""The network that a run begins with: a checkpoint's, and new heads where it has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlserve.errors import TrainingError
from vlserve.exporter.checkpoint import INDEX, checkpoint_sha256, load_into, open_checkpoint
from vlserve.exporter.image_settings import published_image
from vlserve.exporter.json_file import read_json
from vlserve.exporter.recipe import Recipe
from vlserve.exporter.weights import fit_names
from vlserve.runtime.archive import file_sha256
from vlserve.training.finetune.plan import TASK_OF, FinetunePlan, Objective
from vlserve.training.objectives.classify import share_cross_attention, shares_cross_attention

CLASSES: Mapping[str, int] = {"reason": 2, "entail": 3}
HEAD = "cls_head."
PAIR_PARTS = ("vision_proj.", "text_proj.", "itm_head.", "temp")
"""What a classifier has no use for."""
OBJECTIVE_OF = {"match": "retrieve"}


@dataclass(frozen=True)
class Start:
    """``new``: names of what was not in the checkpoint, and begins at random."""

    network: nn.Module
    config: dict[str, Any]
    objective: Objective
    new: tuple[str, ...]
    sha256: str
    temperature: Tensor | None
    """Of the contrast, where the checkpoint has one that the network lacks."""


def start_from(
    recipe: Recipe,
    plan: FinetunePlan,
    checkpoint: Path,
    config: Path | None,
    objective: Objective | None,
    seed: int,
) -> Start:
    """Read any layout that export reads; the ViT's positions are interpolated to the size of
    config.json's image. Raises CheckpointMismatch, or ExportError for a config that is wrong."""
    if checkpoint.suffix == ".json" and not checkpoint.name.endswith(INDEX):
        return from_nothing(recipe, plan, checkpoint, objective, seed)
    file = config or checkpoint.parent / "config.json"
    said = _read_config(recipe, file)
    weights = open_checkpoint(checkpoint)
    torch.manual_seed(seed)

    def load(state: dict[str, Tensor]) -> tuple[dict[str, Any], nn.Module, tuple[str, ...]]:
        whole, new = with_head(state, objective)
        given = {**said, **({"task": TASK_OF.get(objective, objective)} if objective else {})}
        completed = recipe.complete_config(given, whole, file.parent)
        network = recipe.build(completed)
        load_into(network, recipe.adapt(whole, completed), recipe.spec.family)
        if completed["task"] == "reason" and shares_cross_attention(network):
            share_cross_attention(network)
        return completed, network, new

    prefix, (completed, network, new) = fit_names(weights, load)
    chosen = _objective(plan, completed, objective)
    temperature = weights.state.get(f"{prefix}temp")
    sha256 = checkpoint_sha256(checkpoint)
    return Start(network, completed, chosen, new, sha256, temperature)


def from_nothing(
    recipe: Recipe, plan: FinetunePlan, config: Path, objective: Objective | None, seed: int
) -> Start:
    """A new network of a config.json that is complete, as export writes it into an archive: weights
    by Glorot and Bengio (2010), as S2 and M2 begin. ExportError names what the config lacks."""
    said = _read_config(recipe, config)
    torch.manual_seed(seed)
    network = recipe.build(said)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    state = network.state_dict()
    completed = recipe.complete_config(said, state, config.parent)
    chosen = _objective(plan, completed, objective)
    return Start(network, completed, chosen, ("every tensor",), file_sha256(config), None)


def _objective(
    plan: FinetunePlan, config: Mapping[str, Any], objective: Objective | None
) -> Objective:
    """What was asked for, or the checkpoint's own task. TrainingError where that is not trained."""
    own = OBJECTIVE_OF.get(config["task"], config["task"])
    chosen = objective or next((one for one in plan.objectives if one == own), None)
    if chosen is None:
        raise TrainingError(
            f"the checkpoint's task is {own}, which is not trained here: name one with "
            f"--objective: {', '.join(plan.objectives)}"
        )
    return chosen


def with_head(
    state: Mapping[str, Tensor], objective: Objective | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors for an objective, and the names of new ones: a checkpoint of pairs gets a
    classifier in place of its projections."""
    if (
        objective is None
        or objective not in CLASSES
        or any(name.startswith(HEAD) for name in state)
    ):
        return dict(state), ()
    kept = {name: x for name, x in state.items() if not name.startswith(PAIR_PARTS)}
    words = next((x for name, x in state.items() if name.endswith("word_embeddings.weight")), None)
    if words is None:
        return kept, ()
    hidden = words.shape[1]
    head = nn.Sequential(
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES[objective])
    )
    new = {f"{HEAD}{name}": x.detach() for name, x in head.state_dict().items()}
    return kept | new, tuple(new)


def _read_config(recipe: Recipe, file: Path) -> dict[str, Any]:
    said = read_json(file, str(file)) if file.is_file() else None
    if not isinstance(said, dict):
        raise TrainingError(f"{file} is no JSON object: training needs the checkpoint's config")
    published = published_image(file.parent) if recipe.spec.reads_image_settings else None
    if published:
        said["image"] = {**published.fields, **said.get("image", {})}
    return said
