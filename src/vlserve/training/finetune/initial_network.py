"""The network that a run begins with: a checkpoint's, and new heads where it has none."""

from collections.abc import Callable, Mapping, Sequence
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
from vlserve.families.config_file import read_names
from vlserve.runtime.archive import file_sha256
from vlserve.training.finetune.plan import FinetunePlan, Objective
from vlserve.training.objectives.classify import share_cross_attention, shares_cross_attention

NAMED: Mapping[str, str] = {"answer": "answers", "tag": "labels"}
"""The field of config.json that names the rows of an objective's head."""
Names = Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Start:
    """``new``: names of what was not in the checkpoint, and begins at random. ``words``: the head
    by which pretraining guesses words, where the checkpoint holds one that requests do not need."""

    network: nn.Module
    config: dict[str, Any]
    objective: Objective
    new: tuple[str, ...]
    sha256: str
    temperature: Tensor | None
    """Of the contrast, where the checkpoint has one that the network lacks."""
    words: Mapping[str, Tensor]


def start_from(
    recipe: Recipe,
    plan: FinetunePlan,
    checkpoint: Path,
    config: Path | None,
    objective: Objective | None,
    seed: int,
    names: Names | None = None,
) -> Start:
    """Read any layout that export reads; the ViT's positions are interpolated to the size of
    config.json's image. ``names`` gives those of a new head's rows where config.json has none.
    Raises CheckpointMismatch, or ExportError for a config that is wrong."""
    if checkpoint.suffix == ".json" and not checkpoint.name.endswith(INDEX):
        return from_nothing(recipe, plan, checkpoint, objective, seed)
    file = config or checkpoint.parent / "config.json"
    fields = _said_for(plan, _read_config(recipe, file), objective, file.parent, names)
    field = NAMED.get(objective or "", "")
    weights = open_checkpoint(checkpoint)
    torch.manual_seed(seed)

    def load(state: dict[str, Tensor]) -> tuple[dict[str, Any], nn.Module, tuple[str, ...]]:
        whole, new = plan.fitted(state, objective, len(fields.get(field, ())))
        full_config = recipe.complete_config(fields, whole, file.parent)
        network = recipe.build(full_config)
        load_into(network, recipe.adapt(whole, full_config), recipe.spec.family)
        if full_config["task"] == "reason" and shares_cross_attention(network):
            share_cross_attention(network)
        return full_config, network, new

    prefix, (full_config, network, new) = fit_names(weights, load)
    return Start(
        network,
        full_config,
        _objective(plan, full_config, objective),
        new,
        checkpoint_sha256(checkpoint),
        weights.state.get(f"{prefix}temp"),
        _word_head(weights.state, prefix),
    )


def from_nothing(
    recipe: Recipe, plan: FinetunePlan, config: Path, objective: Objective | None, seed: int
) -> Start:
    """A new network of a config.json that is complete, as export writes it into an archive: weights
    by Glorot and Bengio (2010), as S2 and M2 begin. ExportError names what the config lacks,
    TrainingError the objectives that its network can learn."""
    fields = _read_config(recipe, config)
    torch.manual_seed(seed)
    network = recipe.build(fields)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    state = network.state_dict()
    full_config = recipe.complete_config(fields, state, config.parent)
    choice = _objective(plan, full_config, objective)
    choices = [name for name in plan.objectives if plan.has_head(network, full_config, name)]
    if choice not in choices:
        raise TrainingError(
            f"{config}: its network, of the task {full_config['task']}, has no head for {choice}: "
            f"it can be trained for {', '.join(choices) or 'nothing'}; another task in the file "
            "makes another network"
        )
    sha256 = file_sha256(config)
    return Start(network, full_config, choice, ("every tensor",), sha256, None, {})


def _said_for(
    plan: FinetunePlan,
    fields: dict[str, Any],
    objective: Objective | None,
    folder: Path,
    names: Names | None,
) -> dict[str, Any]:
    """config.json for an objective, without what its own tensors will show."""
    if objective is None:
        return fields
    task = plan.task(objective)
    exclusions = {*plan.shown, *(plan.of_task if fields.get("task", task) != task else ())}
    result = {name: value for name, value in fields.items() if name not in exclusions} | {
        "task": task
    }
    field = NAMED.get(objective)
    if field is None or names is None:
        return result
    if isinstance(result.get(field), str):
        result[field] = read_names(folder / result[field], field)
    return result if result.get(field) or "id2label" in result else result | {field: list(names())}


def _word_head(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """ALBEF's head of masked words, under the names of its predictions."""
    own = f"{prefix}text_encoder.cls."
    return {
        name.removeprefix(own): x
        for name, x in state.items()
        if name.startswith(own) and ".decoder." not in name
    }


def _objective(
    plan: FinetunePlan, config: Mapping[str, Any], objective: Objective | None
) -> Objective:
    """What was asked for, or the checkpoint's own task. TrainingError where that is not trained."""
    own = config["task"]
    choice = objective or next((name for name in plan.objectives if plan.task(name) == own), None)
    if choice is None:
        raise TrainingError(
            f"the checkpoint's task is {own}, which is not trained here: name one with "
            f"--objective: {', '.join(plan.objectives)}"
        )
    return choice


def _read_config(recipe: Recipe, file: Path) -> dict[str, Any]:
    config = read_json(file, str(file)) if file.is_file() else None
    if not isinstance(config, dict):
        raise TrainingError(f"{file} is no JSON object: training needs the checkpoint's config")
    image_settings = published_image(file.parent) if recipe.spec.reads_image_settings else None
    own = config.get("image") or {}
    if image_settings and isinstance(own, dict):
        config["image"] = {**image_settings.fields, **own}
    return config
