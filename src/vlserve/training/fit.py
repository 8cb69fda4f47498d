"""Train a tagger on a JSONL file: `fit`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vlserve.errors import DataError, SettingsError
from vlserve.exporter.checkpoint import load_into, read_checkpoint
from vlserve.exporter.recipe import Recipe
from vlserve.runtime.archive import file_sha256
from vlserve.training.dataset import Dataset, encode_dataset, read_dataset
from vlserve.training.distributed import barrier, is_first
from vlserve.training.json_lines import BadLine
from vlserve.training.metrics.confidence import RESAMPLES
from vlserve.training.metrics.tagging import Metrics
from vlserve.training.options import TrainOptions, parse_options
from vlserve.training.plan import TrainingPlan, digest_of, parts_of, training_plan
from vlserve.training.plots import plot_average_precisions, plot_confusion
from vlserve.training.run import OnProgress, Progress, best_epoch
from vlserve.training.run import train as train_job
from vlserve.training.run_folder import (
    LAST,
    METRICS,
    PLOT,
    WEIGHTS,
    begin_folder,
    check_resumable,
    keep_record,
    write_json,
)
from vlserve.training.run_log import LogTo
from vlserve.training.samples import OnRead
from vlserve.training.state import save_weights
from vlserve.training.tagger_learning import TagJob, add_dropout, measure_tags, solve

FEATURES = "features"
"""Folder of what a frozen part of the network made of the items, unless another is given."""


@dataclass(frozen=True)
class TrainReport:
    """What a run left in ``out``: model.safetensors and config.json, for the exporter;
    metrics.json, confusion.png, and bad_lines.json if a line was left out. ``metrics`` are those of
    the best epoch on the validation file."""

    out: Path
    metrics: Metrics
    best_epoch: int
    epochs: int
    train_items: int
    bad_lines: tuple[BadLine, ...]
    seconds: float


def fit(
    recipe: Recipe,
    train: Path,
    val: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    strict: bool = False,
    features: Path | None = None,
    progress: OnProgress | None = None,
    log_to: LogTo = "jsonl",
) -> TrainReport:
    """Train ``recipe`` on the items of ``train``; keep the epoch that is best on ``val`` by
    macro-F1, by mean average precision when items have several labels, or by the share of questions
    whose best answer is right.

    The same files, options, seed and number of threads give the same figures. ``resume`` goes on
    after the last whole epoch in ``out``, with the same files, options and seed, as if it had never
    stopped. ``options``: see `TrainOptions` and the recipe's own. ``features``: a folder that keeps
    what a frozen part of the network makes of the items, for later runs too; by default in ``out``.

    Raises DataError (a file without a usable line; any bad line if ``strict``), SettingsError
    (options), TrainingError (a family that is not trained here, a run that cannot be resumed, or
    whose loss is no longer a number).
    """
    start = time.monotonic()
    plan = training_plan(recipe)
    train_options = _parse(plan, options or {})
    weights = dict(plan.pretrained(train_options)) if plan.frozen else {}
    facts: dict[str, Any] = {
        "options": train_options.said(),
        "seed": seed,
        "train_sha256": _sha256(train),
        "val_sha256": _sha256(val),
    }
    if weights:
        facts["pretrained_sha256"] = digest_of(weights)
    if resume:
        check_resumable(out / LAST, facts)
    on_read = _on_items(progress, "read")
    data = read_dataset(
        recipe, train, val, train_options, training=facts, strict=strict, on_read=on_read
    )
    begin_folder(out, data.config, data.bad_lines, resume=resume)
    torch.manual_seed(seed)
    parts = parts_of(recipe.build(data.config), plan)
    if parts.frozen is not None:
        load_into(parts.frozen, weights, recipe.spec.family)
        cache = features or out / FEATURES
        data = encode_dataset(data, parts.frozen, cache, _on_items(progress, "encode"))
    job = TagJob(parts, data, train_options)
    if train_options.convex:
        epochs = _solve(job, out, progress)
    else:
        add_dropout(parts.trained, train_options.dropout)
        epochs = train_job(
            job,
            train_options,
            seed,
            out,
            facts=facts,
            resume=resume,
            progress=progress,
            log_to=log_to,
        )
    metrics = _measure_best(recipe, data, out)
    keep_record(out, epochs, job.chosen_by, evaluation=metrics.to_json())
    seconds = time.monotonic() - start
    report = TrainReport(
        out=out,
        metrics=metrics,
        best_epoch=best_epoch(epochs, job.chosen_by),
        epochs=len(epochs),
        train_items=len(data.train),
        bad_lines=data.bad_lines,
        seconds=seconds,
    )
    _write_metrics(report, job.chosen_by, facts, epochs)
    return report


def _solve(job: TagJob, out: Path, progress: OnProgress | None) -> list[dict[str, Any]]:
    """Return figures of the optimum, as of an only epoch; its weights are in ``out``."""
    start = time.monotonic()
    network = job.trained
    solution = solve(network, job.loss, job.data.train, job.options.penalty)
    if is_first():
        save_weights(out / WEIGHTS, job.checkpoint(network))
    barrier()
    seconds = time.monotonic() - start
    figures = {
        "train_loss": solution.loss,
        "largest_gradient": solution.gradient,
        "converged": solution.converged,
        **job.figures(network),
        "seconds": seconds,
    }
    if progress:
        progress(Progress("train", 1, 1, figures))
    return [{"epoch": 1, **figures}]


def _measure_best(recipe: Recipe, data: Dataset, out: Path) -> Metrics:
    """Return figures of the best epoch's weights as they lie in ``out``, each with its interval,
    and draw their picture."""
    network = recipe.build(data.config)
    load_into(network, read_checkpoint(out / WEIGHTS), recipe.spec.family)
    part = parts_of(network, training_plan(recipe)).trained
    metrics, scores = measure_tags(part, data, resamples=RESAMPLES)
    plot = plot_average_precisions if data.multi_label else plot_confusion
    if is_first():
        plot(out / PLOT, data.val.targets, scores, data.config["labels"])
    return metrics


def _write_metrics(
    report: TrainReport, metric: str, facts: Mapping[str, Any], epochs: list[dict[str, Any]]
) -> None:
    content = {
        **report.metrics.to_json(),
        "best_epoch": report.best_epoch,
        "best_by": metric,
        "train_items": report.train_items,
        "bad_lines": len(report.bad_lines),
        "seconds": report.seconds,
        **facts,
        "epochs": epochs,
    }
    write_json(report.out / METRICS, content)


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _on_items(progress: OnProgress | None, stage: Literal["read", "encode"]) -> OnRead | None:
    if progress is None:
        return None
    return lambda count, total: progress(Progress(stage, count, total))


def _parse(plan: TrainingPlan, options: Mapping[str, Any]) -> TrainOptions:
    train_options = parse_options(plan.options, options)
    if plan.frozen and train_options.augment:
        raise SettingsError("augment: a frozen part of the network sees each image once, unchanged")
    return train_options
