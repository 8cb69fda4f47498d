"""What a stack costs as its work grows: loaded models, larger images, longer texts.

    .venv/bin/python -m benchmarks.serving.scale

Stacks of its own, asked through the gateway. Models are copies of one archive under other names.
Each figure is the median of rounds that go through all cells. Writes CSV and plots, and its part of
docs/benchmarks.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.lib.archives import default_archives, renamed
from benchmarks.lib.closed_loop import Job, LoadProcess, LoadResult
from benchmarks.lib.own_stack import own_stack
from benchmarks.lib.photos import Photo, jpeg, photos
from benchmarks.lib.published import FIGURES, machine, publish
from vlserve.cli.output import print_line
from vlserve.stack.stopping import processes
from vlserve.testing.stack import RunningStack

MODELS = "1,2,4,8"
WIDTHS = (320, 640, 1280, 1920, 2560, 4000)
LENGTHS = (1, 10, 40, 80, 150)
BASE_WIDTH, BASE_LENGTH = 1280, 10
CONNECTIONS = 16


@dataclass(frozen=True)
class ModelCount:
    """A stack with so many models. ``memory_mib``: of all its processes, shared pages counted
    once; ``register_s``: of the model that came last."""

    models: int
    memory_mib: float
    register_s: float
    one_per_s: float
    """Answers a second when one of them is asked."""
    all_per_s: float
    """When all are asked alike."""
    failures: int


@dataclass(frozen=True)
class SizeLatency:
    """The median latency of one connection at one size."""

    size: int
    p50_ms: float
    failures: int


@dataclass(frozen=True)
class Timing:
    rounds: int
    seconds: float

    @property
    def warm_up_s(self) -> float:
        """Time before each cell, no longer than the cell."""
        return min(0.7, self.seconds)


def measure_models(
    archives: Sequence[Path],
    counts: Sequence[int],
    folder: Path,
    load: LoadProcess,
    timing: Timing,
) -> list[ModelCount]:
    """Measure what each number of models costs, in rounds: in each a new stack gets one after the
    other.

    Args:
        archives: The models, at least as many as the highest of ``counts``.
        counts: Numbers of loaded models at which the stack is measured.
        folder: Where the stacks keep their state.
        load: The clients.
        timing: How long each cell is measured, and how often.
    """
    rounds = []
    for number in range(timing.rounds):
        with own_stack(folder / f"round-{number}") as stack:
            rounds.append(_one_round(stack, archives, counts, load, timing))
    return [_median_of(same) for same in zip(*rounds, strict=True)]


def _one_round(
    stack: RunningStack,
    archives: Sequence[Path],
    counts: Sequence[int],
    load: LoadProcess,
    timing: Timing,
) -> list[ModelCount]:
    results, urls = [], []
    for number, archive in enumerate(archives, start=1):
        start_s = time.monotonic()
        view = stack.control.register(archive)
        register_s = time.monotonic() - start_s
        urls.append(f"{stack.settings.gateway_url}/predictions/{view.model}/{view.version}")
        if number in counts:
            single, everyone = _ask(load, urls[:1], timing), _ask(load, urls, timing)
            failures = _failures(single) + _failures(everyone)
            memory_mib = _memory_mib(stack)
            results.append(
                ModelCount(number, memory_mib, register_s, single.per_s, everyone.per_s, failures)
            )
            print_line(str(results[-1]))
    return results


def _median_of(counts: Sequence[ModelCount]) -> ModelCount:
    return ModelCount(
        counts[0].models,
        median(count.memory_mib for count in counts),
        median(count.register_s for count in counts),
        median(count.one_per_s for count in counts),
        median(count.all_per_s for count in counts),
        sum(count.failures for count in counts),
    )


def _ask(
    load: LoadProcess,
    urls: Sequence[str],
    timing: Timing,
    connections: int = CONNECTIONS,
    group: int = 0,
) -> LoadResult:
    job = Job(urls, "form", {}, connections, timing.seconds, timing.warm_up_s, group)
    return load.do(job, on_begin=lambda: None, on_end=lambda: None)


def _failures(load_result: LoadResult) -> int:
    if load_result.failures:
        print_line(f"FAILED: {dict(load_result.failures)}")
    return sum(load_result.failures.values())


def _memory_mib(stack: RunningStack) -> float:
    total = 0
    for process in processes(stack.settings):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def measure_sizes(
    url: str, groups: Mapping[int, Sequence[Photo]], timing: Timing
) -> list[SizeLatency]:
    """Measure the latency of each group of photos, in rounds."""
    results_by_size: dict[int, list[LoadResult]] = {size: [] for size in groups}
    with closing(LoadProcess(*groups.values())) as load:
        for _ in range(timing.rounds):
            for group, results_of_size in enumerate(results_by_size.values()):
                results_of_size.append(_ask(load, [url], timing, connections=1, group=group))
    results = [
        SizeLatency(
            size,
            median(result.p50_ms for result in load_results),
            sum(_failures(result) for result in load_results),
        )
        for size, load_results in results_by_size.items()
    ]
    print_line(str(results))
    return results


def by_width() -> dict[int, list[Photo]]:
    text = "a" * BASE_LENGTH
    return {width: [Photo(jpeg(0, (width, width * 9 // 16)), text)] for width in WIDTHS}


def by_length() -> dict[int, list[Photo]]:
    image = jpeg(0, (BASE_WIDTH, BASE_WIDTH * 9 // 16))
    text = "a title of a video " * (max(LENGTHS) // 10)
    return {length: [Photo(image, text[:length])] for length in LENGTHS}


def ratios(results: Sequence[SizeLatency], base: int) -> dict[int, float]:
    """Each size's latency over that of size ``base``."""
    base_ms = next(latency.p50_ms for latency in results if latency.size == base)
    return {latency.size: latency.p50_ms / base_ms for latency in results}


def report(
    models: Sequence[ModelCount], widths: Sequence[SizeLatency], lengths: Sequence[SizeLatency]
) -> str:
    """The page's part, in Markdown."""
    first, last = models[0], models[-1]
    model_mib = (last.memory_mib - first.memory_mib) / (last.models - first.models)
    failures = sum(count.failures for count in models)
    failures += sum(latency.failures for latency in (*widths, *lengths))
    lines = [machine(), ""]
    lines += ["| models loaded | memory of the stack | one asked | all asked | last register |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {count.models} | {count.memory_mib:.0f} MiB | "
        f"{count.one_per_s / first.one_per_s:.2f} | {count.all_per_s / first.one_per_s:.2f} | "
        f"{count.register_s:.1f} s |"
        for count in models
    ]
    lines += [
        "",
        f"One more model takes {model_mib:.0f} MiB. Asked: answers a second at {CONNECTIONS} "
        "connections, as ratios to those with one model loaded.",
        "",
        f"Latency (p50, one connection) by width of a 16:9 JPEG, as ratios to {BASE_WIDTH} px: "
        f"{_ratio_list(ratios(widths, BASE_WIDTH))}.",
        "",
        f"By characters of the title, as ratios to {BASE_LENGTH}: "
        f"{_ratio_list(ratios(lengths, BASE_LENGTH))}.",
        "",
        f"Requests that failed: {failures}.",
    ]
    return "\n".join(lines)


def _ratio_list(results: Mapping[int, float]) -> str:
    return ", ".join(f"{size}: {ratio:.2f}" for size, ratio in results.items())


def as_csv(
    models: Sequence[ModelCount], widths: Sequence[SizeLatency], lengths: Sequence[SizeLatency]
) -> str:
    lines = ["what,size,figure,value"]
    for count in models:
        for name in ("memory_mib", "register_s", "one_per_s", "all_per_s", "failures"):
            lines.append(f"models,{count.models},{name},{getattr(count, name):.2f}")
    for what, results in (("image width px", widths), ("title characters", lengths)):
        for latency in results:
            lines.append(f"{what},{latency.size},p50_ms,{latency.p50_ms:.2f}")
            lines.append(f"{what},{latency.size},failures,{latency.failures}")
    return "\n".join(lines) + "\n"


def plot(
    models: Sequence[ModelCount],
    widths: Sequence[SizeLatency],
    lengths: Sequence[SizeLatency],
    folder: Path,
) -> None:
    """scale-models.png, scale-image.png, scale-text.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    def draw(name: str, across: str, lines: Mapping[str, Mapping[int, float]]) -> None:
        figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        for label, points in lines.items():
            axes.plot(list(points), list(points.values()), marker="o", label=label)
        axes.set_xlabel(across)
        axes.set_ylabel("ratio to the first" if name == "models" else "ratio of the latency")
        axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(fontsize="small")
        figure.savefig(folder / f"scale-{name}.png", dpi=90)
        pyplot.close(figure)

    first = models[0]
    draw(
        "models",
        "models loaded",
        {
            "memory": {m.models: m.memory_mib / first.memory_mib for m in models},
            "answers/s, one asked": {m.models: m.one_per_s / first.one_per_s for m in models},
            "answers/s, all asked": {m.models: m.all_per_s / first.one_per_s for m in models},
        },
    )
    draw("image", "width of the JPEG, px", {"": ratios(widths, BASE_WIDTH)})
    draw("text", "characters of the title", {"": ratios(lengths, BASE_LENGTH)})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--archive", type=Path, help="default: the int8 one of serving.py")
    parser.add_argument("--models", default=MODELS, help="numbers of loaded models, at least two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell")
    parser.add_argument("--out", type=Path, help="folder for CSV and plots, and no page")
    options = parser.parse_args()
    counts = [int(count) for count in options.models.split(",")]
    timing = Timing(options.rounds, options.seconds)
    archive = options.archive or default_archives()[-1]
    with tempfile.TemporaryDirectory(prefix="vlserve-scale-") as scratch, ExitStack() as resources:
        folder = Path(scratch)
        load = LoadProcess(photos())
        resources.callback(load.close)
        archives = [
            renamed(archive, f"model-{number}", folder) for number in range(1, max(counts) + 1)
        ]
        models = measure_models(archives, counts, folder, load, timing)
        stack = resources.enter_context(own_stack(folder / "stack"))
        view = stack.control.register(archives[0])
        url = f"{stack.settings.gateway_url}/predictions/{view.model}/{view.version}"
        widths = measure_sizes(url, by_width(), timing)
        lengths = measure_sizes(url, by_length(), timing)
    text = report(models, widths, lengths)
    print_line(text)
    out = options.out or FIGURES
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.csv").write_text(as_csv(models, widths, lengths), encoding="utf-8")
    plot(models, widths, lengths, out)
    if options.out is None:
        plots = [f"![](benchmarks/scale-{name}.png)" for name in ("models", "image", "text")]
        publish("scale", "\n".join([text, "", *plots]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
