"""train --from: a run that begins with a checkpoint, and what is shown of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlserve.cli.bad_lines import print_bad_lines
from vlserve.cli.output import print_json, print_line, print_table, stderr

if TYPE_CHECKING:
    from vlserve.exporter.recipe import Recipe
    from vlserve.training.run_log import LogTo


@dataclass(frozen=True)
class Run:
    """What a run is told, but for its folder."""

    recipe: "Recipe"
    checkpoint: Path
    train: Path
    val: Path
    objective: str | None
    options: Mapping[str, Any]
    seed: int
    log_to: "LogTo" = "jsonl"

    @property
    def objectives(self) -> tuple[str | None, ...]:
        """One after the other; None: that of the checkpoint's task."""
        return tuple(self.objective.split(",")) if self.objective else (None,)

    def with_preset(self, name: str | None) -> "Run":
        """Return this run with a preset's objective and options, where it says nothing else."""
        if name is None:
            return self
        from vlserve.training.finetune.stages import with_preset

        objective, options = with_preset(name, self.recipe, self.objective, self.options)
        return replace(self, objective=objective, options=options)


def show_finetuning(run: Run, out: Path, *, resume: bool, strict: bool, as_json: bool) -> None:
    """Train, and print the best epoch's figures."""
    from vlserve.training.finetune.stages import finetune_in_stages
    from vlserve.training.progress import training_progress

    with training_progress(f"training {run.checkpoint.name}", stderr) as show:
        report = finetune_in_stages(
            *(run.recipe, run.checkpoint, run.train, run.val, out),
            objectives=run.objectives,
            options=run.options,
            seed=run.seed,
            resume=resume,
            strict=strict,
            progress=show,
            log_to=run.log_to,
        )
    if as_json:
        print_json(report)
        return
    print_bad_lines(report.bad_lines)
    _print_new(report.new)
    print_table(("METRIC", "VALUE"), list(report.metrics.items()))
    print_line(f"best epoch {report.best_epoch} of {report.epochs}; wrote {report.out}")
    family = run.recipe.spec.family
    print_line(f"next: vlserve export {family} --checkpoint {report.out}/model.safetensors --out …")


def show_dry_run(run: Run, *, as_json: bool) -> None:
    """Take one step by the first objective; print its shapes, the parameters and the memory."""
    from vlserve.training.finetune.run import dry_run
    from vlserve.training.finetune.stages import stage_options
    from vlserve.training.progress import training_progress

    with training_progress(f"one step of {run.checkpoint.name}", stderr) as show:
        report = dry_run(
            *(run.recipe, run.checkpoint, run.train, run.val),
            objective=run.objectives[0],
            options=stage_options(run.recipe, run.options, run.objectives[0], run.objectives),
            seed=run.seed,
            progress=show,
        )
    if as_json:
        print_json(report)
        return
    _print_new(report.new)
    shapes = [(name, " x ".join(map(str, shape))) for name, shape in report.shapes.items()]
    print_table(("INPUT", "SHAPE"), shapes)
    parts = [(part, trainable, total) for part, (trainable, total) in report.parameters.items()]
    print_table(("PART", "LEARNS", "PARAMETERS"), parts)
    print_table(("LOSS", "VALUE"), list(report.losses.items()))
    print_line(f"{report.steps} steps an epoch; memory so far {report.memory_mib} MiB")


def show_processes(count: int, words: list[str], out: Path, *, as_json: bool) -> None:
    """Train in several processes, and print the best epoch's figures."""
    from vlserve.training.processes import train_in_processes

    train_in_processes(count, words)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        print_json(metrics)
        return
    best, epochs = metrics["best_epoch"], metrics["epochs"]
    figures = {x: y for x, y in metrics.items() if isinstance(y, float) and x != "seconds"}
    print_table(("METRIC", "VALUE"), list(figures.items()))
    print_line(f"best epoch {best} of {len(epochs)}; wrote {out}")


def _print_new(names: tuple[str, ...]) -> None:
    if names:
        print_line(f"not in the checkpoint, and begins at random: {', '.join(names)}")
