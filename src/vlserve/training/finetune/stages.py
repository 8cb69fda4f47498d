"""One objective after the other, each a run with an optimiser and a schedule of its own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlserve.errors import SettingsError, TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.training.finetune.option_use import follows
from vlserve.training.finetune.plan import plan_of
from vlserve.training.finetune.prepare import read_options
from vlserve.training.finetune.run import FinetuneReport, finetune
from vlserve.training.presets import preset_of
from vlserve.training.run import OnProgress
from vlserve.training.run_folder import LAST, METRICS, WEIGHTS
from vlserve.training.run_log import LogTo


def finetune_in_stages(
    recipe: Recipe,
    checkpoint: Path,
    train_file: Path,
    val_file: Path,
    out: Path,
    *,
    objectives: Sequence[str | None],
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    strict: bool = False,
    progress: OnProgress | None = None,
    log_to: LogTo = "jsonl",
) -> FinetuneReport:
    """Train by each objective in turn, beginning with the best epoch of the one before; the last
    one's files are those of ``out``, an earlier one's stand in a folder of its name there.

    ``objectives``: None alone for that of the checkpoint's task.
    ``options``: of every stage, or of one, as ``reward.learning_rate``. ``resume`` goes on with the
    stage that was under way. Returns the last stage's report; raises what `finetune` does.
    """
    values = options or {}
    if len(set(objectives)) < len(objectives):
        raise SettingsError(f"objectives {_named(objectives)}: each has a folder of its own")
    every = [stage_options(recipe, values, stage, objectives) for stage in objectives]
    records = []
    for stage, own in zip(objectives, every, strict=True):  # not after hours of the first
        plan, target = plan_of(recipe, stage)
        records.append(read_options(recipe, plan, target, own).said())
    folders = [*(out / str(stage) for stage in objectives[:-1]), out]
    if not resume:
        for folder in folders:
            for name in (METRICS, LAST):
                (folder / name).unlink(missing_ok=True)
    begin = checkpoint
    for objective, own, record, folder in zip(objectives, every, records, folders, strict=True):
        if folder != out and (folder / METRICS).is_file():
            _check_same(folder, record, seed)
        else:
            report = finetune(
                *(recipe, begin, train_file, val_file, folder),
                objective=objective,
                options=own,
                seed=seed,
                resume=resume and (len(folders) == 1 or (folder / LAST).is_file()),
                strict=strict,
                progress=progress,
                log_to=log_to,
            )
        begin = folder / WEIGHTS
    return report


def stage_options(
    recipe: Recipe,
    options: Mapping[str, Any],
    objective: str | None,
    objectives: Sequence[str | None],
) -> dict[str, Any]:
    """What of ``options`` counts for a stage: its own win, and of those of every stage it gets none
    that another stage alone reads. SettingsError for those of no stage; TrainingError for a stage
    that the recipe lacks."""
    parts = {key: key.rpartition(".") for key in options}
    if unknown := sorted({stage for stage, _, _ in parts.values()} - {"", *objectives}):
        raise SettingsError(f"options of {', '.join(unknown)}: stages are {_named(objectives)}")
    every = {key: value for key, value in options.items() if not parts[key][0]}
    own = {parts[key][2]: x for key, x in options.items() if parts[key][0] == objective}
    readers = {key: _readers(recipe, key, objectives) for key in every}
    return {
        key: value
        for key, value in every.items()
        if not readers[key] or objective in readers[key]  # of none: refused with its reason
    } | own


def with_preset(
    name: str, recipe: Recipe, objective: str | None, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return objective and options of a run: the preset's, where they say nothing else, but for
    what of it another objective does not read. Raises what `preset_of` and `plan_of` do."""
    preset = preset_of(name, recipe.spec.family)
    stages = objective or preset.objective
    objectives = stages.split(",")

    def counts(key: str) -> bool:
        stage, _, option = key.rpartition(".")
        readers = _readers(recipe, option, objectives)
        return stage in readers if stage else bool(readers)

    return stages, {**{k: v for k, v in preset.options.items() if counts(k)}, **options}


def _readers(recipe: Recipe, name: str, objectives: Sequence[str | None]) -> list[str | None]:
    """The stages that read an option; that of the checkpoint's own task may."""
    plans = {objective: plan_of(recipe, objective) for objective in objectives}
    return [
        objective
        for objective, (plan, target) in plans.items()
        if target is None or follows(plan, target, name)
    ]


def _named(objectives: Sequence[str | None]) -> str:
    return ", ".join(objective or "the checkpoint's own" for objective in objectives)


def _check_same(folder: Path, options: Mapping[str, Any], seed: int) -> None:
    """TrainingError where a stage that is finished had other options."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    if (metrics["options"], metrics["seed"]) != (options, seed):
        raise TrainingError(
            f"{folder} is of a run with other options or another seed: resume with the same, or "
            "train into another folder"
        )
