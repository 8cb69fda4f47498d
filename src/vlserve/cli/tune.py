"""tune: the best serving settings of an archive on this machine."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlserve.cli.output import AsJson, print_json, print_line, print_table, progress
from vlserve.cli.parameters import ArchiveFile, Group, file_option, finite
from vlserve.control.domain import EngineKind
from vlserve.processor import usable_cores
from vlserve.settings import load_settings

if TYPE_CHECKING:
    from vlserve.tuning.tune import TuningResult


def tune(
    archive: ArchiveFile,
    slo_p99_ms: Annotated[
        float,
        typer.Option(min=1, callback=finite, help="Limit of the p99 latency in milliseconds."),
    ],
    minutes: Annotated[
        float,
        typer.Option(
            min=0.1,
            callback=finite,
            help="Time budget in minutes; a running measurement is finished.",
        ),
    ] = 5.0,
    seconds: Annotated[int, typer.Option(min=1, help="Length of each measurement in seconds.")] = 4,
    data: Annotated[
        Path | None,
        file_option(
            "Requests, JSON lines with img and text. Default: the archive's probes, varied."
        ),
    ] = None,
    engine: Annotated[
        EngineKind | None,
        typer.Option(
            help="Engine to measure the archive on. Default: the stack's own (engine.kind), and "
            "TorchServe where it runs both."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the serving settings of an archive with the most answers a second within a p99 limit.

    The settings are workers, threads, batch size and, on TorchServe, batch delay. They are written
    beside the archive, where `vlserve register` finds them. The command runs a stack of its own;
    nothing else should load the machine meanwhile. Exit code 1 when no setting holds the limit.
    """
    from vlserve.control.tuning import of_engine
    from vlserve.loadgen.dataset_requests import read_dataset
    from vlserve.runtime.archive import verify_archive
    from vlserve.testing.private_stack import on_one_engine, private_stack
    from vlserve.tuning.trials import Load, Trials
    from vlserve.tuning.tune import tune as search
    from vlserve.tuning.tune import write_tuning

    verify_archive(archive)  # before a stack is started for it
    if data is not None:
        read_dataset(data)
    settings, cores = on_one_engine(load_settings(), engine), usable_cores()
    with (
        tempfile.TemporaryDirectory(prefix="vlserve-tune-runs-") as runs,
        progress(f"tuning {archive.name}") as show,
        private_stack(settings, show) as own,
    ):
        load = Load(data, seconds)
        trials = Trials(archive, own.control, own.gateway_url, load, Path(runs))
        start = of_engine(settings.engine)
        result = search(trials, slo_p99_ms, start, cores, minutes * 60, seconds, show)
    files = write_tuning(trials, result) if result.best else ()
    if as_json:
        print_json(result)
    else:
        _print(result, [str(file) for file in files])
    raise typer.Exit(0 if result.best else 1)


def _print(result: "TuningResult", files: list[str]) -> None:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} ms"

    rows = [
        (
            point.serving.workers,
            point.serving.threads,
            point.serving.batch_size,
            f"{point.serving.max_batch_delay_ms} ms",
            point.connections,
            f"{point.rps:.1f}/s",
            ms(point.p50_ms),
            ms(point.p99_ms),
            f"{point.error_rate:.1%}" if point.error_rate else "",
            "chosen" if point is result.best else point.verdict(result.slo_p99_ms),
        )
        for point in result.points
    ]
    heads = ("WORKERS", "THREADS", "BATCH", "DELAY", "CONNECTIONS", "ANSWERED", "P50", "P99")
    print_table((*heads, "ERRORS", ""), rows)
    if any(point.client_saturated for point in result.points):
        print_line(
            "client saturated: the load generator was at its limit, so such runs do not count"
        )
    for failure in result.failed:
        print_line(f"could not be loaded: {failure}")
    end = "no better setting was left to try" if result.finished else "the time budget was spent"
    if result.best is None:
        nearest = result.nearest
        lowest = (
            f"; the lowest p99 was {ms(nearest.p99_ms)}, {nearest.serving} "
            f"with {nearest.connections} connections"
            if nearest
            else ""
        )
        print_line(
            f"no setting held p99 <= {result.slo_p99_ms:g} ms, nothing was written ({end}){lowest}"
        )
        return
    best = result.best
    print_line(
        f"best: {best.serving} (workers x threads): {best.rps:.1f}/s with {best.connections} "
        f"connections at p99 {ms(best.p99_ms)}; {end}"
    )
    print_line(f"written: {', '.join(files)}")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=Group.BUILD)(tune)
