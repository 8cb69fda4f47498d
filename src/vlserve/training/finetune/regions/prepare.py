"""The job of a network that reads regions, and its data."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlserve.errors import DataError
from vlserve.runtime.manifest import ImageInput, RegionInput
from vlserve.runtime.text import Tokenizer, load_tokenizer
from vlserve.training.finetune.data import TaskData
from vlserve.training.finetune.initial_network import Start
from vlserve.training.finetune.jobs import Items
from vlserve.training.finetune.plan import FinetuneOptions, FinetunePlan
from vlserve.training.finetune.regions.data import (
    Extractor,
    RegionFiles,
    named,
    read_region_data,
)
from vlserve.training.finetune.regions.inputs import RegionInputs
from vlserve.training.finetune.regions.jobs import HeadJob, TagJob, head_parts
from vlserve.training.finetune.regions.matching import MatchJob, Pairs
from vlserve.training.finetune.regions.plans import Config, RegionPlan, TextOf
from vlserve.training.finetune.regions.pretrain import RegionPretrainJob
from vlserve.training.finetune.vocabulary import Vocabulary
from vlserve.training.objectives.pretrain_regions import RegionTarget
from vlserve.training.optimisers import freeze
from vlserve.training.options import refuse
from vlserve.training.run import Job
from vlserve.training.tagger_learning import class_weights, make_loss

LABELS: dict[str, tuple[Any, ...]] = {
    "reason": (False, True),
    "entail": ("contradiction", "neutral", "entailment"),
}
"""In the order of the head's rows."""
GRID = "grid"
"""The part of a network that makes features of images; it does not learn."""


def region_job(
    plan: FinetunePlan,
    start: Start,
    options: FinetuneOptions,
    files: tuple[Path, Path],
    on_read: Callable[[int, int], None],
) -> tuple[Job, tuple[TaskData, TaskData]]:
    """Read both files, and make the job of the start's objective."""
    own: Any = plan  # every plan that is of no captioner and no ViT
    config = start.config
    inputs = RegionInputs(_tokenizer(own.text, config), bool(config.get("global_region")))
    target = _guessed(own, start)
    reading = _region_files(own, start, target)
    labels = LABELS.get(start.objective) or config.get(_named(start.objective), ())
    data = _both(files, start.objective, reading, inputs.tokenizer, labels, on_read)
    return _job(own, start, options, data, inputs, labels, target), data


def _job(
    plan: RegionPlan,
    start: Start,
    options: FinetuneOptions,
    data: tuple[TaskData, TaskData],
    inputs: RegionInputs,
    labels: Any,
    target: RegionTarget | None,
) -> Job:
    network, config, objective = start.network, start.config, start.objective
    items = Items(*data, options.batch_size)
    if objective == "pretrain":
        plan.tie(network)
        words = Vocabulary.of(config["vocabulary"], config.get("task_tokens", 0))
        return RegionPretrainJob(network, items, inputs, plan, config, words, target)

    def scores(of: Any, batch: Any) -> torch.Tensor:
        return plan.scores(of, config, objective, batch)

    if objective == "match":
        train, val = (Pairs(part) for part in data)
        return MatchJob(network, train, val, inputs, scores, options.batch_size)
    several = objective == "tag" and bool(config.get("multi_label"))
    if objective == "tag" and not several:
        for each in data:
            _refuse_several(each)
    if several:
        refuse(
            f"{name}: items have several labels (multi_label in config.json), each of which is "
            "learnt without it"
            for name in ("label_smoothing", "class_weight_power")
            if name in options.model_fields_set
        )
    power = options.class_weight_power
    class_loss = make_loss(
        multi_label=several,
        label_smoothing=0.0 if several else options.label_smoothing,
        class_weights=class_weights(_rows(data[0], labels), power) if power else None,
        gamma=options.focal_gamma,
    )
    parts = head_parts(
        objective,
        labels,
        plan.answer_loss,
        by_score=plan.by_score,
        several=several,
        class_loss=class_loss,
    )
    kind = TagJob if several else HeadJob
    return kind(network, items, inputs, objective, scores, **parts)


def _rows(data: TaskData, labels: Sequence[str]) -> NDArray[np.int64]:
    """Labels of items, 0 and 1, (items, labels)."""
    rows = [[label in named(item) for label in labels] for item in data.file.items]
    return np.array(rows, dtype=np.int64)


def _refuse_several(data: TaskData) -> None:
    """DataError where an item has several labels, of which one softmax can learn one."""
    if any(len(item.label) > 1 for item in data.file.items):
        raise DataError(
            f"{data.file.path}: items have several labels: say multi_label true in config.json"
        )


def _both(
    files: tuple[Path, Path],
    objective: str,
    reading: RegionFiles,
    text: Tokenizer,
    labels: Any,
    on_read: Callable[[int, int], None],
) -> tuple[TaskData, TaskData]:
    """Training and validation items; a label that the network lacks is one line's own trouble, but
    an answer that it lacks is only a question that it cannot answer."""
    classes = labels if objective in ("tag", "entail") else ()
    arguments = (objective, reading, text)
    data = read_region_data(files[0], *arguments, labels=classes, on_read=on_read)
    train_ids = frozenset(item.id for item in data.file.items)
    validation = read_region_data(
        files[1], *arguments, labels=classes, without=train_ids, on_read=on_read
    )
    return data, validation


def _guessed(plan: RegionPlan, start: Start) -> RegionTarget | None:
    """What pretraining guesses of a region: features where its head is as wide as those, else the
    detector's distribution."""
    if start.objective != "pretrain" or not plan.region_targets(start.config):
        return None
    wide = plan.region_targets(start.config) == start.config["region_dim"]
    return "features" if wide else "distribution"


def _region_files(plan: RegionPlan, start: Start, target: RegionTarget | None) -> RegionFiles:
    config, grid = start.config, start.config.get(GRID)
    boxes = "region_dim" in config
    dim = config["region_dim" if boxes else "visual_dim"]
    spec = RegionInput(dim=dim, max_regions=config["max_regions"], boxes=boxes)
    objects = plan.region_targets(config) if target == "distribution" else 0
    if not grid:
        return RegionFiles(spec, objects)
    freeze(start.network, (GRID,))
    image = ImageInput.model_validate(grid["image"])
    return RegionFiles(spec, objects, image, _extractor(start.network.get_submodule(GRID)))


def _extractor(grid: torch.nn.Module) -> Extractor:
    """A network's own features of an image's cells, which do not learn."""
    grid.eval()

    @torch.no_grad()
    def extract(image: NDArray[np.float32]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = grid(torch.from_numpy(image).unsqueeze(0))[0].numpy()
        return features

    return extract


def _tokenizer(text: TextOf, config: Config) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        assets = Path(folder) / "assets"
        assets.mkdir()
        return load_tokenizer(text(config, assets), Path(folder))


def _named(objective: str) -> str:
    return "labels" if objective == "tag" else "answers"
