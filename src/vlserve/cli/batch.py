"""batch, tag: an archive's answers to whole files of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vlserve.cli.output import AsJson, print_json, print_line, progress
from vlserve.cli.parameters import (
    Frame,
    Group,
    control_client,
    finite,
    refuse_other_machine,
    require_folder,
    written_file_option,
)
from vlserve.cli.stopping import INTERRUPTED
from vlserve.control.control_access import remote_access
from vlserve.control.domain import State
from vlserve.errors import BatchError, NotReady, VlserveError
from vlserve.extras import require_extras
from vlserve.processor import usable_cores
from vlserve.runtime.archive import manifest_of, verify_archive
from vlserve.settings import load_settings
from vlserve_worker.storage import ObjectPath, path_of

if TYPE_CHECKING:
    from vlserve.batch.job import Options
    from vlserve.batch.locks import Shard
    from vlserve.batch.run import Crewing
    from vlserve.batch.sample import Prediction

_SHOWN_LABELS = 10


def _folder_or_objects(text: str) -> str:
    try:
        path = path_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if isinstance(path, Path):
        require_folder(path)
    return text


def batch(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ARCHIVE",
            help="Archive file (.mar), or the name of a model, whose released version answers.",
        ),
    ],
    input: Annotated[
        list[str],
        typer.Option(
            help="Input: a file (.parquet, .jsonl, .csv, .tsv, .tar; text kinds also .gz or .zst), "
            "a folder of images or videos, or a glob; or the same as s3://bucket/… May be given "
            "several times."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            callback=_folder_or_objects,
            help="Folder of the output, or s3://bucket/prefix. An earlier run of the same job goes "
            "on.",
        ),
    ],
    format: Annotated[
        Literal["jsonl", "parquet"], typer.Option(help="Kind of the output's files.")
    ] = "jsonl",
    id: Annotated[
        str, typer.Option(help="Column of ids. Rows without it are named by their number.")
    ] = "id",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="Column that holds a field of the request, such as text=title or "
            "image_path=cover. Default: the column of the field's name. May be given several "
            "times.",
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Columns of the input that the output has too, with commas between.")
    ] = "",
    frame: Frame = "first",
    joined: Annotated[
        Path | None,
        written_file_option("File that all parts are joined into at the end. Default: none."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of worker processes. Default: cores that may be used, or the cluster's.",
        ),
    ] = None,
    item_timeout: Annotated[
        float,
        typer.Option(
            min=2.0,
            callback=finite,
            help="Time after which a row without an answer fails, in s.",
        ),
    ] = 60.0,
    max_error_rate: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of failed rows above which the exit code is 1."),
    ] = 1.0,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors",
            help="Run the rows again that failed in an earlier run. Default: their errors stay.",
        ),
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Only answer every Nth part, from part I (0 to N-1) on, beside others that answer "
            "the rest into the same folder. Default: all parts.",
        ),
    ] = "",
    cluster: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster whose nodes have the workers: auto (the one that this machine "
            "belongs to), HOST:PORT or ray://HOST:PORT. Default: none.",
        ),
    ] = "",
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Only run this number of rows, spread over the input, and predict what the whole "
            "takes; nothing is written. Default: run the whole.",
        ),
    ] = None,
    core_hour_price: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            callback=finite,
            help="Price of one core for one hour, in any currency, for the cost of the CPU time in "
            "report and prediction. Default: no cost.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer every row of files by an archive, offline.

    Each input row gets one output row, in order: its answer, or an error code and message. All
    state is in the output's folder: the same command again goes on where it ended.
    """
    _require_extras(format, output)
    from vlserve.batch.job import Options
    from vlserve.batch.run import Crewing

    part_of = _shard(shard)
    if joined is not None and not part_of.is_whole:
        raise typer.BadParameter("is for the run without --shard", param_hint="--joined")
    if cluster and (sample is not None or not part_of.is_whole):
        wrong = "is for whole jobs, without --sample and --shard"
        raise typer.BadParameter(wrong, param_hint="--cluster")
    options = Options(
        format=format, id=id, columns=_mapping(column or []), keep=_names(keep), frame=frame
    )
    job = _Job(
        archive=_archive_for(options, model),
        inputs=input,
        options=options,
        crewing=Crewing(
            workers or (0 if cluster else usable_cores()),
            item_timeout_s=item_timeout,
            shard=part_of,
            cluster=cluster,
        ),
        core_hour_price=core_hour_price,
    )
    if sample is not None:
        _predict(job, sample, as_json)
        return
    report = _answer(job, output, joined=joined, retry_errors=retry_errors)
    _print(report, as_json)
    _check_error_rate(report, max_error_rate)


def tag(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|ARCHIVE", help="As in `vlserve batch`; of task tag."),
    ],
    input: Annotated[list[str], typer.Option(help="As in `vlserve batch`.")],
    output: Annotated[
        str,
        typer.Option(metavar="FOLDER", callback=_folder_or_objects, help="As in `vlserve batch`."),
    ],
    format: Annotated[
        Literal["jsonl", "parquet"], typer.Option(help="Kind of the output's files.")
    ] = "jsonl",
    keep: Annotated[str, typer.Option(help="As in `vlserve batch`.")] = "",
    as_json: AsJson = False,
) -> None:
    """Tag every row of files: `vlserve batch` with a model of task tag."""
    _require_extras(format, output)
    from vlserve.batch.job import Options
    from vlserve.batch.run import Crewing

    options = Options(format=format, keep=_names(keep))
    archive = _archive_for(options, model)
    task = verify_archive(archive).task
    if task != "tag":
        raise BatchError(f"{archive.name} is of task {task}: use `vlserve batch`")
    report = _answer(_Job(archive, input, options, Crewing(usable_cores())), output)
    _print(report, as_json)


@dataclass(frozen=True)
class _Job:
    """What is answered, by which archive, and how: what a run and its prediction have in common."""

    archive: Path
    inputs: Sequence[str]
    options: "Options"
    crewing: "Crewing"
    core_hour_price: float | None = None


def _require_extras(output_format: str, output: str) -> None:
    """Refuse a job whose packages are not installed."""
    require_extras("cpu", *(["batch"] if output_format == "parquet" else []))
    if isinstance(path_of(output), ObjectPath):
        require_extras("batch")


def _predict(job: _Job, rows: int, as_json: bool) -> None:
    """Run ``rows`` rows of a job, and print what the whole takes."""
    from vlserve.batch.run import predict_batch

    with progress(f"sampling {', '.join(job.inputs)}") as show:
        prediction = predict_batch(
            job.archive,
            job.inputs,
            rows,
            job.options,
            job.crewing,
            core_hour_price=job.core_hour_price,
            show=show,
        )
    _print_prediction(prediction, as_json)


def _answer(
    job: _Job, output: str, *, joined: Path | None = None, retry_errors: bool = False
) -> Mapping[str, Any]:
    """Run a job and return its report. Ctrl-C ends the command and leaves what is finished."""
    from vlserve.batch.join import join_parts
    from vlserve.batch.run import run_batch

    out = path_of(output)
    if isinstance(out, Path):
        _announce(out)
    try:
        with progress(f"answering {', '.join(job.inputs)}") as show:
            report = run_batch(
                job.archive,
                job.inputs,
                out,
                job.options,
                job.crewing,
                retry_errors=retry_errors,
                core_hour_price=job.core_hour_price,
                show=show,
            )
            if joined is not None:
                join_parts(out, job.options.format, joined)
    except KeyboardInterrupt:
        print_line(f"stopped; the same command goes on: what is finished is in {output}")
        raise typer.Exit(INTERRUPTED) from None
    return report


def _check_error_rate(report: Mapping[str, Any], max_error_rate: float) -> None:
    """Refuse a report with a larger share of failed rows."""
    if report["rows"] and report["failed"] / report["rows"] > max_error_rate:
        raise BatchError(
            f"{report['failed']} of {report['rows']} rows failed, more than --max-error-rate "
            f"{max_error_rate:g} allows"
        )


def _announce(out: Path) -> None:
    """Tell the control service of this project, if it runs, where the output is."""
    if remote_access():  # another machine's console cannot read this one's folder
        return
    try:
        with control_client() as control:
            control.announce_batch_job(out)
    except VlserveError:  # a job needs no stack
        return


def archive_of(model: str) -> Path:
    """Return the archive file that ``model`` names, itself or as the released version's.

    Raises:
        NotReady: The model has no released version.
        StackDown: It is no file, and no stack is up that would know the model.
    """
    file = Path(model)
    if file.suffix == ".mar" or file.exists():
        return file
    refuse_other_machine(f"batch {model}")
    with control_client() as control:
        versions = control.model(model).versions
    number = next((each.version for each in versions if each.state is State.STABLE), None)
    if number is None:
        raise NotReady(f"{model} has no released version: name an archive file instead")
    return load_settings().model_store / model / str(number) / f"{model}-{number}.mar"


def _archive_for(options: "Options", model: str) -> Path:
    """Return what `archive_of` does, once ``options`` suit the archive."""
    from vlserve.batch.job import check_options

    archive = archive_of(model)
    try:
        check_options(options, manifest_of(archive))
    except BatchError as error:
        raise typer.BadParameter(str(error), param_hint="--keep") from error
    return archive


def _shard(text: str) -> "Shard":
    from vlserve.batch.locks import Shard

    try:
        return Shard.parse(text) if text else Shard()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _mapping(pairs: list[str]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        field, sign, column = pair.partition("=")
        if not (field and sign and column):
            raise typer.BadParameter(f"{pair} is not FIELD=COLUMN", param_hint="--column")
        mapping[field] = column
    return mapping


def _print(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for code, count in report["errors"].items():
        print_line(f"{count} rows failed: {code}")
    labels = list(report["labels"].items())[:_SHOWN_LABELS]
    if labels:
        print_line("first labels: " + ", ".join(f"{label} {count}" for label, count in labels))
    print_line(
        f"{report['rows']} rows by {report['model']} {report['version']}, {report['failed']} "
        f"failed, in {report['parts']} parts, {report['seconds']} s ({report['cpu_seconds']} s of "
        "CPU in all runs)"
    )
    if report["duplicate_ids"]:
        print_line(f"{report['duplicate_ids']} rows have an id that an earlier row has")
    if report["cost_per_million"] is not None:
        print_line(f"a million rows cost {report['cost_per_million']:.4g} of CPU time")
    if report["unfinished_parts"]:
        print_line(f"{report['unfinished_parts']} parts of other shards are not finished")
        return
    print_line(f"wrote {report['out']}, with report.html")


def _print_prediction(prediction: "Prediction", as_json: bool) -> None:
    from vlserve.batch.progress import duration

    if as_json:
        print_json(prediction)
        return
    print_line(
        f"{prediction.sampled_rows} of {prediction.input_rows} rows, {prediction.failed_rows} "
        f"failed, {prediction.cpu_ms_per_row:.3g} ms of CPU a row"
    )
    print_line(
        f"the whole takes about {duration(prediction.cpu_seconds)} of CPU, and "
        f"{duration(prediction.seconds)} with {prediction.workers} workers"
    )
    if prediction.cost is not None:
        print_line(f"it costs {prediction.cost:.4g}, a million {prediction.cost_per_million:.4g}")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.TEST)(batch)
    app.command(rich_help_panel=Group.TEST)(tag)
