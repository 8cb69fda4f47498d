"""``torchrun --nproc-per-node N -m vlserve.training RECIPE …``: `vlserve train` in N processes.

The words are those of `vlserve train`. A process that torchrun starts again goes on after the last
state that was kept; Ctrl-C and SIGTERM end a run after the step that is under way.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vlserve.errors import VlserveError
from vlserve.exporter.recipe import load_recipe
from vlserve.settings import load_settings
from vlserve.training.contrastive import fit_pairs, is_of_pairs
from vlserve.training.distributed import is_first, joined
from vlserve.training.finetune.stages import finetune_in_stages, with_preset
from vlserve.training.fit import fit
from vlserve.training.presets import tag_options
from vlserve.training.progress import training_progress
from vlserve.training.run import Progress
from vlserve.training.run_folder import LAST

INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Train, and return the exit code."""
    arguments = _parser().parse_args(words)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with joined():
        try:
            if is_first():
                with training_progress(f"training {arguments.recipe}", console) as show:
                    _train(arguments, show)
            else:
                _train(arguments, lambda _: None)
        except KeyboardInterrupt:
            return INTERRUPTED
        except (VlserveError, OSError) as error:
            if is_first():
                console.print(f"vlserve: {error}", markup=False)
            return 1
    return 0


def _train(arguments: argparse.Namespace, show: Callable[[Progress], None]) -> None:
    settings = load_settings()
    recipe = load_recipe(arguments.recipe, settings.folder("export"))
    options = dict(option.partition("=")[::2] for option in arguments.set)
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    more: dict[str, Any] = {
        "seed": arguments.seed,
        "strict": arguments.strict,
        "log_to": arguments.log_to,
    }
    more["progress"] = show
    if arguments.checkpoint:
        objective = arguments.objective
        if arguments.preset:
            objective, options = with_preset(arguments.preset, recipe, objective, options)
        finetune_in_stages(
            *(recipe, arguments.checkpoint, arguments.data, arguments.val, arguments.out),
            objectives=tuple(objective.split(",")) if objective else (None,),
            options=options,
            resume=arguments.resume or again,
            **more,
        )
        return
    (fit_pairs if is_of_pairs(recipe) else fit)(
        *(recipe, arguments.data, arguments.val, arguments.out),
        options=tag_options(arguments.preset, recipe.spec.family, options),
        resume=arguments.resume or (again and (arguments.out / LAST).is_file()),
        features=settings.state_dir / "features",
        **more,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vlserve.training", description=__doc__)
    parser.add_argument("recipe")
    for name in ("--data", "--val", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--from", dest="checkpoint", type=Path)
    parser.add_argument("--set", action="append", default=[])
    for name in ("--objective", "--preset"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-to", choices=("jsonl", "tensorboard"), default="jsonl")
    for name in ("--resume", "--strict"):
        parser.add_argument(name, action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
