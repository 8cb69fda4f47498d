"""Train a checkpoint on for a task: `finetune`."""

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlserve.errors import DataError
from vlserve.exporter.recipe import Recipe
from vlserve.training.finetune.data import bad_lines
from vlserve.training.finetune.prepare import prepare
from vlserve.training.json_lines import BadLine, first_of
from vlserve.training.optimisers import own_name
from vlserve.training.run import OnProgress, best_epoch, first_step, train
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
    start = time.monotonic()
    ready = prepare(
        recipe, checkpoint, train_file, val_file, config, objective, options, seed, progress
    )
    if resume:
        check_resumable(out / LAST, ready.facts)
    wrong = bad_lines(*ready.data)
    if strict and wrong:
        raise DataError(f"{len(wrong)} bad line(s): {first_of(wrong)}")
    run_config = {**ready.start.config, "training": dict(ready.facts)}
    begin_folder(out, run_config, wrong, resume=resume)
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
        seconds=time.monotonic() - start,
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
    ready = prepare(
        recipe, checkpoint, train_file, val_file, config, objective, options, seed, progress
    )
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
        part = own_name(name).partition(".")[0]
        trainable, every = counts.get(part, (0, 0))
        size = parameter.numel()
        counts[part] = (trainable + size * parameter.requires_grad, every + size)
    return counts
