"""demo-data, train, export, evaluate: from data to an archive and its figures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from vlserve.quantize.export import Int8Report

from vlserve.cli.bad_lines import print_bad_lines
from vlserve.cli.finetuning import Run, show_dry_run, show_finetuning, show_processes
from vlserve.cli.output import (
    AsJson,
    print_json,
    print_line,
    print_table,
    print_warning,
    progress,
    stderr,
)
from vlserve.cli.parameters import (
    MAX_VERSION,
    ArchiveFile,
    Group,
    Strict,
    file_option,
    file_or_folder_option,
    folder_argument,
    folder_option,
)
from vlserve.cli.stopping import INTERRUPTED
from vlserve.cli.versions import KEY_HELP
from vlserve.extras import require_extras
from vlserve.settings import load_settings

CheckpointFile = Annotated[
    Path,
    file_or_folder_option(
        "Checkpoint: a safetensors file, a torch file of tensors and plain values, or the "
        "*.index.json of one in shards."
    ),
]


def demo_data(
    folder: Annotated[Path, folder_argument("Folder to write; created when it is missing.")],
    items: Annotated[int, typer.Option(min=20, help="Number of covers, of both files.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw a data set of covers with Chinese and English titles: train.jsonl and val.jsonl.

    The tag of an item depends on its cover and its title.
    """
    from vlserve.training.demo_data import write_demo_data

    data = write_demo_data(folder, items=items, seed=seed)
    if as_json:
        print_json(data)
        return
    print_line(f"wrote {data.train} and {data.val}")


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe in export/.")],
    data: Annotated[
        Path,
        file_option("Training data, JSON lines."),
    ],
    val: Annotated[
        Path,
        file_option("Validation data, JSON lines; chooses the best epoch."),
    ],
    out: Annotated[
        Path,
        folder_option("Folder for the checkpoint, its config.json and metrics.json."),
    ],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Training option KEY=VALUE, e.g. epochs=20; may be given several times. "
            "Default: the recipe's options.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    checkpoint: Annotated[
        Path | None,
        file_or_folder_option(
            "Checkpoint to train on, of any layout that export reads, with its config.json beside "
            "it; or a complete config.json, for a new network of it. Default: a new network.",
            "--from",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="What a network of --from learns: retrieve, match, entail, reason, answer, tag, "
            "ground, caption, reward or pretrain; or two with a comma between them, one stage "
            "after the other. Default: the task of the checkpoint."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Objective and options as published, e.g. albef-retrieval; --set changes them. "
            "Default: none."
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of the network that does not learn, e.g. visual_encoder; may be given "
            "several times. Default: none."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="With --from: take one step, show shapes, parameters and memory, write nothing. "
            "Default: train.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the interrupted run in the --out folder. Default: start anew.",
        ),
    ] = False,
    log_to: Annotated[
        Literal["jsonl", "tensorboard"],
        typer.Option(
            help="Where losses, learning rate and figures go: log.jsonl in --out, or also events "
            "for TensorBoard (extra `tensorboard`), in its folder tensorboard."
        ),
    ] = "jsonl",
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of processes of this machine that train together, each with batches of "
            "its own: with two, a step sees twice as many items.",
        ),
    ] = 1,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Train a model and write its checkpoint, configuration and metrics."""
    require_extras("train")
    from vlserve.exporter.recipe import load_recipe
    from vlserve.training.contrastive import fit_pairs, is_of_pairs
    from vlserve.training.fit import fit
    from vlserve.training.presets import tag_options
    from vlserve.training.progress import training_progress

    settings = load_settings()
    recipe_object = load_recipe(recipe, settings.folder("export"))
    train_options = _pairs(options or []) | ({"freeze": ",".join(freeze)} if freeze else {})
    run = None
    if checkpoint is not None:
        run = Run(recipe_object, checkpoint, data, val, objective, train_options, seed, log_to)
        run = run.with_preset(preset)
    with _said_how_to_go_on(out, run.objectives[:-1] if run else ()):
        if processes > 1 and not dry_run:
            words = [recipe, f"--data={data}", f"--val={val}", f"--out={out}", f"--seed={seed}"]
            words += [f"--set={name}={value}" for name, value in train_options.items()]
            options_of_finetuning = {
                "from": checkpoint,
                "objective": objective,
                "preset": preset,
                "log-to": log_to,
            }
            words += [
                f"--{name}={value}"
                for name, value in options_of_finetuning.items()
                if value is not None
            ]
            words += ["--resume"] * resume + ["--strict"] * strict
            show_processes(processes, words, out, as_json=as_json)
            return
        if run is not None:
            if dry_run:
                show_dry_run(run, as_json=as_json)
            else:
                show_finetuning(run, out, resume=resume, strict=strict, as_json=as_json)
            return
        if objective is not None or dry_run:
            raise typer.BadParameter("needs --from", param_hint="--objective, --dry-run")
        train_options = tag_options(preset, recipe_object.spec.family, train_options)
        with training_progress(f"training {recipe}", stderr) as show:
            report = (fit_pairs if is_of_pairs(recipe_object) else fit)(
                recipe_object, data, val, out,
                options=train_options, seed=seed, resume=resume, strict=strict,
                features=settings.state_dir / "features", progress=show, log_to=log_to,
            )  # fmt: skip
    if as_json:
        print_json(report)
        return
    print_bad_lines(report.bad_lines)
    print_table(("METRIC", "VALUE"), list(report.metrics.to_json().items()))
    print_line(f"best epoch {report.best_epoch} of {report.epochs}; wrote {report.out}")
    print_line(f"next: vlserve export {recipe} --checkpoint {report.out}/model.safetensors --out …")


@contextmanager
def _said_how_to_go_on(out: Path, first_stages: Sequence[str | None]) -> Iterator[None]:
    """Say what goes on with a run that Ctrl-C ended. ``first_stages``: those before the last
    one, whose states lie in folders of their names."""
    try:
        yield
    except KeyboardInterrupt:
        folders = (out, *(out / str(stage) for stage in first_stages))
        has_state = any((folder / "last.safetensors").is_file() for folder in folders)
        print_warning(
            "stopped; the same command with --resume goes on"
            if has_state
            else "stopped before the first state was kept"
        )
        raise typer.Exit(INTERRUPTED) from None


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = dict(option.partition("=")[::2] for option in options)
    if any("=" not in option for option in options):
        raise typer.BadParameter("give key=value", param_hint="--set")
    return pairs


def export(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe in export/, or a path to one.")],
    checkpoint: CheckpointFile,
    out: Annotated[Path, folder_option("Folder for the archive <name>-<version>.mar.")],
    config: Annotated[
        Path | None,
        file_option("Configuration of the model. Default: config.json beside --checkpoint."),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Key of the checkpoint that holds the weights, e.g. state_dict_ema. Default: the "
            "only one that does, else the first of state_dict, model and the like.",
        ),
    ] = None,
    format: Annotated[
        Literal["onnx", "torchscript"], typer.Option(help="Format of the graphs.")
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "int8", "fp16", "bf16"],
        typer.Option(
            help="Number format of the weights: int8 needs --calibration, fp16 and bf16 are for "
            "GPUs."
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        file_option(
            "Data for int8, JSON lines as evaluate reads them: some items set the ranges, "
            "the others test the accuracy. Default: none."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model. Default: the family's name.")
    ] = None,
    version: Annotated[
        int, typer.Option(min=1, max=MAX_VERSION, help="Number of the version.")
    ] = 1,
    sign: Annotated[
        Path | None,
        file_option(f"{KEY_HELP} Signs the archive, as `vlserve sign` does. Default: not signed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint into an archive, and prove that its graphs answer like the network."""
    require_extras("cpu", "train")
    from vlserve.exporter.export import export_archive
    from vlserve.quantize.export import Int8Report, export_int8
    from vlserve.signing.archives import sign_archive
    from vlserve.signing.keys import read_private_key

    key = None if sign is None else read_private_key(sign)  # before minutes of work
    if (precision == "int8") != (calibration is not None):
        raise typer.BadParameter(
            "int8 needs a file to calibrate on, and nothing else does", param_hint="--calibration"
        )
    options: dict[str, Any] = {"config": config, "format": format, "name": name, "version": version}
    options |= {"settings": load_settings(), "state_key": state}
    with progress(f"exporting {checkpoint.name}") as show:
        report = (
            export_archive(recipe, checkpoint, out, precision=precision, progress=show, **options)
            if calibration is None
            else export_int8(recipe, checkpoint, out, calibration, progress=show, **options)
        )
    if key is not None:
        sign_archive(report.path, key)
    if as_json:
        print_json(report)
        return
    for note in report.notes:
        print_line(note)
    for graph, parity in report.parity.items():
        print_line(
            f"graph {graph} equals the network on {parity.cases} unseen shapes, "
            f"largest difference {parity.max_abs_diff:.1e}"
        )
    if isinstance(report, Int8Report):
        _print_int8(report)
    print_line(f"wrote {report.path}" + (", and its signature beside it" if key else ""))
    print_line(f"next: vlserve register {report.path}")


PROCESSORS = {
    True: "gated on a processor with VNNI: to serve it on x86 without, export it there",
    False: "gated on a processor without VNNI",
    None: "gated on a processor of which it is not known whether it has VNNI",
}


def _print_int8(report: "Int8Report") -> None:
    for name, graph in report.quantization.graphs.items():
        remark = f", {len(graph.excluded)} nodes left in float" if graph.excluded else ""
        print_line(f"graph {name}: {graph.method}, {report.faster[name]:.2f}x fp32{remark}")
    print_line(f"{report.verdict}; plans asked: {report.quantization.plans_asked}")
    print_line(PROCESSORS[report.quantization.vnni])


def evaluate(
    archive: ArchiveFile,
    data: Annotated[
        Path,
        file_option("Labelled data, JSON lines."),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Number of items in a batch.")] = 8,
    rerank: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of nearest candidates that the match head ranks again, for models that "
            "have one; 0: none.",
        ),
    ] = 16,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Run every item of a data file through an archive, and compute the metrics of its task.

    The archive's own frozen code runs, in a process of its own.
    """
    require_extras("cpu", "train")
    from vlserve.training.evaluators import evaluate as evaluate_archive

    with progress(f"evaluating {archive.name}") as show:
        result = evaluate_archive(
            archive, data, batch_size=batch_size, strict=strict, rerank=rerank, progress=show
        )
    if as_json:
        print_json({**result.figures, "bad_lines": result.bad_lines})
        return
    print_bad_lines(result.bad_lines)
    print_table(("METRIC", "VALUE"), list(result.figures.items()))


def add_to(app: typer.Typer) -> None:
    app.command("demo-data", rich_help_panel=Group.BUILD)(demo_data)
    for command in (train, export, evaluate):
        app.command(rich_help_panel=Group.BUILD)(command)
