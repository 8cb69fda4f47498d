"""Train a checkpoint on for a task: `finetune`."""

import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vlserve.errors import DataError, TrainingError
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.archive import file_sha256
from vlserve.runtime.manifest import ImageInput
from vlserve.runtime.text import Tokenizer, load_tokenizer
from vlserve.training.finetune.captioner import captioner_job, read_features
from vlserve.training.finetune.changes import ItemChanges, item_changes
from vlserve.training.finetune.data import TaskData, bad_lines, read_data
from vlserve.training.finetune.jobs import AnswerJob, CaptionJob, ClassJob, Items, Words
from vlserve.training.finetune.plan import CaptionerPlan, FinetuneOptions, VisionTextPlan, plan_of
from vlserve.training.finetune.retrieval import PairNetwork, RetrievalJob
from vlserve.training.finetune.start import Start, start_from
from vlserve.training.lines import BadLine, first_of
from vlserve.training.loop import add_dropout
from vlserve.training.options import parse_options
from vlserve.training.run import (
    Job,
    OnProgress,
    Progress,
    best_epoch,
    first_step,
    train,
)
from vlserve.training.run_folder import (
    LAST,
    METRICS,
    begin_folder,
    check_resumable,
    keep_record,
    write_json,
)
from vlserve.training.run_log import OF_THE_RUN, LogTo


@dataclass(frozen=True)
class FinetuneReport:
    """What a run left in ``out``: model.safetensors and config.json, for the exporter;
    metrics.json, log.jsonl, last.safetensors, and bad_lines.json if a line was left out.
    ``metrics``: of the best epoch on the validation file. ``new``: tensors that began at random."""

    out: Path
    objective: str
    metrics: Mapping[str, float]
    best_epoch: int
    epochs: int
    train_items: int
    new: tuple[str, ...]
    bad_lines: tuple[BadLine, ...]
    seconds: float


@dataclass(frozen=True)
class DryRun:
    """One batch forward and backward. ``shapes`` of its arrays, ``parameters`` by part of the
    network (those that learn, all), ``losses`` by name, the process's highest memory so far."""

    objective: str
    shapes: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, tuple[int, int]]
    losses: Mapping[str, float]
    memory_mib: int
    steps: int
    new: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its first step."""

    start: Start
    options: FinetuneOptions
    facts: Mapping[str, Any]
    job: Job
    data: tuple[TaskData, TaskData]


def finetune(
    recipe: Recipe,
    checkpoint: Path,
    train_file: Path,
    val_file: Path,
    out: Path,
    *,
    config: Path | None = None,
    objective: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    strict: bool = False,
    progress: OnProgress | None = None,
    log_to: LogTo = "jsonl",
) -> FinetuneReport:
    """Train ``checkpoint`` on; keep the epoch that is best on ``val_file``.

    ``objective``: one of the recipe's, by default that of the checkpoint's task. ``config``: by
    default config.json beside the checkpoint. The same files, options, seed and number of threads
    give the same bytes. Raises what `vlserve.training.run.train` and `prepare` do, and DataError
    for any bad line if ``strict``.
    """
    begun = time.monotonic()
    given = (recipe, checkpoint, train_file, val_file, config, objective, options, seed, progress)
    ready = prepare(*given)
    if resume:
        check_resumable(out / LAST, ready.facts)
    wrong = bad_lines(*ready.data)
    if strict and wrong:
        raise DataError(f"{len(wrong)} bad line(s): {first_of(wrong)}")
    said = {**ready.start.config, "training": dict(ready.facts)}
    begin_folder(out, said, wrong, resume=resume)
    job = ready.job
    epochs = train(
        job,
        ready.options,
        seed,
        out,
        facts=ready.facts,
        resume=resume,
        progress=progress,
        log_to=log_to,
    )
    keep_record(out, epochs, job.chosen_by, ready.start.config.get("training"))
    best = best_epoch(epochs, job.chosen_by)
    figures = {k: v for k, v in epochs[best - 1].items() if k not in OF_THE_RUN}
    report = FinetuneReport(
        out=out,
        objective=ready.start.objective,
        metrics=figures,
        best_epoch=best,
        epochs=len(epochs),
        train_items=ready.data[0].file.used,
        new=ready.start.new,
        bad_lines=wrong,
        seconds=time.monotonic() - begun,
    )
    content = {**figures, "best_epoch": best, "best_by": job.chosen_by, "seconds": report.seconds}
    write_json(out / METRICS, {**content, **ready.facts, "epochs": epochs})
    return report


def dry_run(
    recipe: Recipe,
    checkpoint: Path,
    train_file: Path,
    val_file: Path,
    *,
    config: Path | None = None,
    objective: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> DryRun:
    """One batch, and nothing written. Raises what `finetune` does."""
    given = (recipe, checkpoint, train_file, val_file, config, objective, options, seed, progress)
    ready = prepare(*given)
    shapes, losses = first_step(ready.job, ready.options, seed)
    return DryRun(
        objective=ready.start.objective,
        shapes=shapes,
        parameters=parameters_by_part(ready.job.trained),
        losses=losses,
        memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        steps=ready.job.steps,
        new=ready.start.new,
    )


def parameters_by_part(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers that learn, and all, of each part of a network."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in network.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("network.") else name.split(".")[0]
        learning, every = counts.get(part, (0, 0))
        size = parameter.numel()
        counts[part] = (learning + size * parameter.requires_grad, every + size)
    return counts


def prepare(
    recipe: Recipe,
    checkpoint: Path,
    train_file: Path,
    val_file: Path,
    config: Path | None,
    objective: str | None,
    options: Mapping[str, Any] | None,
    seed: int,
    progress: OnProgress | None,
) -> Prepared:
    """Read checkpoint and data. Raises TrainingError (an objective that the family lacks),
    SettingsError (options), DataError, CheckpointMismatch and ExportError."""
    plan, wanted = plan_of(recipe, objective)
    chosen = parse_options(FinetuneOptions, options or {})
    start = start_from(recipe, plan, checkpoint, config, wanted, seed)
    if isinstance(plan, CaptionerPlan):
        data = _feature_files(train_file, val_file, start)
        job: Job = captioner_job(
            *(plan, recipe, start.network, start.config, start.objective, data, chosen)
        )
    else:
        assert isinstance(plan, VisionTextPlan)
        image, text, labels = _serving(recipe, start.config)
        data = _image_files(train_file, val_file, start, image, text, labels, progress)
        changes = item_changes(chosen, start.objective, image)
        job = _job(plan, start, chosen, data, text, labels, changes)
    facts = {
        "objective": start.objective,
        "options": chosen.said(),
        "seed": seed,
        "from_sha256": start.sha256,
        "train_sha256": file_sha256(train_file),
        "val_sha256": file_sha256(val_file),
    }
    add_dropout(start.network, chosen.dropout)
    return Prepared(start, chosen, facts, job, data)


def _feature_files(train_file: Path, val_file: Path, start: Start) -> tuple[TaskData, TaskData]:
    data = read_features(train_file, start.config)
    trained = frozenset(item.id for item in data.file.items)
    return data, read_features(val_file, start.config, without=trained)


def _image_files(
    train_file: Path,
    val_file: Path,
    start: Start,
    image: ImageInput,
    text: Tokenizer | None,
    labels: tuple[str, ...],
    progress: OnProgress | None,
) -> tuple[TaskData, TaskData]:
    """Both files. TrainingError where the network reads no text that the objective needs."""
    if text is None and start.objective != "caption":
        raise TrainingError(f"{start.objective}: the checkpoint reads no text")

    def on_read(done: int, total: int) -> None:
        if progress:
            progress(Progress("read", done, total))

    given = (start.objective, image, text)
    classes = labels if start.objective == "entail" else ()
    data = read_data(train_file, *given, labels=classes, on_read=on_read)
    trained = frozenset(item.id for item in data.file.items)
    held_out = read_data(val_file, *given, labels=classes, without=trained, on_read=on_read)
    return data, held_out


def _job(
    plan: VisionTextPlan,
    start: Start,
    options: FinetuneOptions,
    data: tuple[TaskData, TaskData],
    text: Tokenizer | None,
    labels: tuple[str, ...],
    changes: ItemChanges | None,
) -> Job:
    network, config, objective = start.network, start.config, start.objective
    items = Items(*data, options.batch_size, changes)
    if objective == "caption":
        words = Words(plan.tokenizer(config), plan.start)
        rest = (config["prompt"], plan.caption, plan.smoothing, config["max_length"])
        return CaptionJob(network, items, words, *rest)
    assert text is not None
    if objective == "retrieve":
        rules = options.rules(plan.rules)
        pair = PairNetwork(network, options.queue_size, start.temperature)
        return RetrievalJob(
            pair, partial(plan.encoders, config=config), *data, text, rules, options, changes
        )
    if objective == "answer":
        tokenizer = plan.tokenizer(config)
        begin = tokenizer.token_to_id("[ENC]") if plan.family == "blip" else None
        words = Words(tokenizer, plan.start)
        return AnswerJob(network, items, text, words, plan.smoothing, begin)
    classes = (False, True) if objective == "reason" else labels
    return ClassJob(network, items, text, classes, options.label_smoothing)


def _serving(
    recipe: Recipe, config: Mapping[str, Any]
) -> tuple[ImageInput, Tokenizer | None, tuple[str, ...]]:
    """Image size, tokenizer and labels that an archive of this config serves with."""
    with tempfile.TemporaryDirectory() as folder:
        assets = Path(folder) / "assets"
        assets.mkdir()
        served = recipe.serve(config, assets)
        if served.image is None:
            raise TrainingError(f"{recipe.spec.family} takes no image")
        text = load_tokenizer(served.text, Path(folder)) if served.text else None
        return served.image, text, tuple(served.labels)
