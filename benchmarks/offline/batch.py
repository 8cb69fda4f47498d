"""What an item of an offline job costs, against the in-process limit and other ways.

    .venv/bin/python -m benchmarks.offline.batch --rows 512 --rounds 3

CPU seconds are exact: of a whole process tree, from the kernel's own count. Each way answers a few
rows and all rows in turns; the difference is what an item costs, the rest is fixed. Ways are
interleaved, every second round backwards. Covers are 1280 x 720 JPEGs of about 168 KB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

import pyarrow
import pyarrow.parquet

from benchmarks import CHECKOUT
from benchmarks.lib.archives import default_archives, default_folder
from benchmarks.lib.closed_loop import load
from benchmarks.lib.photos import BODIES, Photo, photos
from benchmarks.lib.ratios import spread
from benchmarks.lib.sides import TUNED, ours, plain_environment, tree
from vlserve.cli.output import print_line, print_table
from vlserve.processor import usable_cores
from vlserve.runtime.archive import unpack_archive

FEW_ROWS = 32
"""For each worker, so that all of them have warmed up in the fixed part of the cost."""
GROUP_ROWS = 32
PHOTOS = 64
LIMIT = "limit"
_LOOK_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Of one way in one round. ``fixed_s``: what it takes beside the items, CPU s; NaN where that
    was not measured, and both where the way did not end in time."""

    way: str
    item_ms: float
    fixed_s: float


@dataclass(frozen=True)
class Setting:
    """What all ways work on."""

    archive: Path
    folder: Path
    few: Path
    many: Path
    rows: int
    scratch: Path
    workers: int
    within_s: float


def covers(folder: Path, rows: int) -> Path:
    """A Parquet file of ``rows`` covers; written once, their photos drawn in turn."""
    file = folder / f"covers-{rows}.parquet"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        images = photos(min(PHOTOS, rows))
        every = [images[row % len(images)] for row in range(rows)]
        table = {
            "id": [str(row) for row in range(rows)],
            "image": [photo.shown for photo in every],
            "text": [photo.text for photo in every],
        }
        pyarrow.parquet.write_table(
            pyarrow.table(table), file, row_group_size=GROUP_ROWS, compression="none"
        )
    return file


def job(setting: Setting, input: Path, out: Path) -> float:
    """`vlserve batch`."""
    script = Path(sys.executable).with_name("vlserve")
    command: list[str | Path] = [
        script,
        "batch",
        setting.archive,
        "--input",
        input,
        "--output",
        out,
    ]
    return _cpu_s([*command, "--workers", str(setting.workers)], setting.within_s)[0]


def other(way: str, setting: Setting, input: Path, out: Path) -> float:
    """One of `offline_ways.WAYS`."""
    out.mkdir(parents=True)
    ways = CHECKOUT / "benchmarks" / "lib" / "offline_ways.py"
    program: list[str | Path] = [sys.executable, "-P", ways, way]
    words = [*program, setting.folder, input, out, str(setting.workers)]
    cpu_s, line = _cpu_s(words, setting.within_s)
    return float(json.loads(line).get("cpu_s", cpu_s))


def _cpu_s(command: list[str | Path], within_s: float) -> tuple[float, str]:
    """CPU seconds of a command and of all that it waited for, and its last line. TimeoutExpired
    where it does not end within ``within_s``; then it is ended with all that it started."""
    environment = plain_environment(**TUNED)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, env=environment, cwd="/"
        )
        until = time.monotonic() + within_s
        while not (end := os.wait4(process.pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                for child in reversed(tree(process.pid)):
                    child.kill()
                process.wait()
                raise subprocess.TimeoutExpired(process.args, within_s)
            time.sleep(_LOOK_S)
        _, status, usage = end
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ends with {process.returncode}")
        output.seek(0)
        return usage.ru_utime + usage.ru_stime, (output.read().splitlines() or [""])[-1]


def by_slope(
    way: str, run: Callable[[Setting, Path, Path], float], setting: Setting, number: int
) -> Cost:
    """What an item costs: all rows less few rows."""
    try:
        few_s, many_s = (
            run(setting, input, setting.scratch / f"{way}-{number}-{input.stem}")
            for input in (setting.few, setting.many)
        )
    except subprocess.TimeoutExpired as error:
        print_line(f"{way}: not at its end after {error.timeout:g} s")
        return Cost(way, float("nan"), float("nan"))
    few_rows = FEW_ROWS * setting.workers
    item_s = (many_s - few_s) / (setting.rows - few_rows)
    return Cost(way, item_s * 1000, few_s - few_rows * item_s)


def in_memory(setting: Setting, number: int) -> Cost:
    """The limit: the archive's own code alone."""
    out = setting.scratch / f"limit-{number}"
    return Cost(LIMIT, other(LIMIT, setting, setting.many, out) * 1000 / setting.rows, float("nan"))


def gateway(setting: Setting, number: int, seconds: float) -> Cost:
    """Requests at full load: CPU of our stack and of the client, an answer."""
    table = pyarrow.parquet.read_table(setting.few).to_pylist()
    bodies = [BODIES["form"](Photo(row["image"], row["text"])) for row in table]
    with ours(setting.scratch / f"stack-{number}", [setting.archive]) as sides:
        side = sides[-1][1]
        readings: list[float] = []

        def note() -> None:
            readings.append(sum(side.cpu_s().values()))

        result = load([side.url], bodies, 16, seconds, 3.0, side.headers, note, note)
    if result.failures:
        raise RuntimeError(f"the gateway answers {dict(result.failures)}")
    cpu_s = readings[1] - readings[0] + result.client_cpus * result.seconds
    return Cost("gateway, client included", cpu_s * 1000 / result.answered, float("nan"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--archive", type=Path, help="default: a full-size tagger, random weights")
    parser.add_argument("--rows", type=int, default=512, help=f"more than {FEW_ROWS} a worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--ways", default="job,pool", help="of job, pool, ray_data, gateway")
    parser.add_argument(
        "--within", type=float, default=240.0, help="s; a run that takes longer is ended"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of load on the gateway")
    parser.add_argument("--out", type=Path, help="a JSON file with every figure")
    return parser.parse_args()


def main() -> int:
    options = _options()
    archive = (options.archive or default_archives()[0]).resolve()
    data = default_folder().parent / "offline"
    few, many = covers(data, FEW_ROWS * options.workers), covers(data, options.rows)
    ways: Mapping[str, Callable[[Setting, int], Cost]] = {
        "job": partial(by_slope, "vlserve batch", job),
        "pool": partial(by_slope, "multiprocessing", partial(other, "pool")),
        "ray_data": partial(by_slope, "Ray Data", partial(other, "ray_data")),
        "gateway": partial(gateway, seconds=options.seconds),
    }
    in_turn = [in_memory, *(ways[name] for name in options.ways.split(","))]
    costs: list[list[Cost]] = []
    with tempfile.TemporaryDirectory(prefix="vlserve-bench-") as scratch:
        folder = Path(scratch) / "archive"
        unpack_archive(archive, folder)
        setting = Setting(
            archive=archive,
            folder=folder,
            few=few,
            many=many,
            rows=options.rows,
            scratch=Path(scratch),
            workers=options.workers,
            within_s=options.within,
        )
        for number in range(options.rounds):
            turns = [measure(setting, number) for measure in in_turn[:: 1 - 2 * (number % 2)]]
            costs.append(turns)
            print_line(", ".join(f"{cost.way} {cost.item_ms:.2f} ms" for cost in turns))
    print_table(("WAY", "CPU MS AN ITEM", "OF THE LIMIT", "FIXED CPU S"), _table(costs))
    if options.out:
        rounds = [[vars(cost) for cost in turns] for turns in costs]
        options.out.write_text(json.dumps(rounds, indent=1), encoding="utf-8")
    return 0


def _table(costs: list[list[Cost]]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = []
    for way in sorted({cost.way for cost in costs[0]}, key=lambda way: way != LIMIT):
        turns = [{cost.way: cost for cost in turns} for turns in costs]
        whole_turns = [
            costs_by_way for costs_by_way in turns if isfinite(costs_by_way[way].item_ms)
        ]
        own = [costs_by_way[way] for costs_by_way in whole_turns]
        ratios = [turn[way].item_ms / turn[LIMIT].item_ms for turn in whole_turns]
        columns = ([cost.item_ms for cost in own], ratios, [cost.fixed_s for cost in own])
        texts = (
            [
                spread(figures).text(digits)
                for figures, digits in zip(columns, (2, 2, 1), strict=True)
            ]
            if own
            else ["did not end"] * 3
        )
        table.append((way, *texts))
    return table


if __name__ == "__main__":
    sys.exit(main())
