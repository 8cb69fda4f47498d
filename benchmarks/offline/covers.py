"""Covers by `vlserve batch`, as Parquet, JSON lines and a tar shard, against the gateway's answers.

    .venv/bin/python -m benchmarks.offline.covers --rows 2000 --data covers/train.jsonl

The demo's tagger answers. Every row must have the gateway's labels, in its order, and its scores
to 1e-6. For each kind it also says when the first part was finished, by the clock and in CPU
seconds of the job until then.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet

from benchmarks.lib.own_stack import own_stack
from benchmarks.lib.sides import tree
from vlserve.cli.output import print_line, print_table
from vlserve.demo import MODEL, VERSIONS, release_demo
from vlserve.testing.stack import RunningStack

TOLERANCE = 1e-6
CALLERS = 16
_LOOK_S = 0.02


@dataclass(frozen=True)
class Cover:
    id: str
    image: Path
    text: str


@dataclass(frozen=True)
class Times:
    """Of one job. ``first_part_s`` and ``first_part_cpu_s``: until a part was finished."""

    first_part_s: float
    first_part_cpu_s: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Outcome:
    """Of one kind of input."""

    kind: str
    rows: int
    other_labels: int
    largest_difference: float
    times: Times


def read_covers(files: Sequence[Path], rows: int) -> list[Cover]:
    """``rows`` covers of data files in turn, each with an id of its own."""
    items = [
        (file.parent / item["img"], item["text"])
        for file in files
        for item in map(json.loads, file.read_bytes().splitlines())
    ]
    pairs = enumerate(islice(cycle(items), rows))
    return [Cover(f"{number:06}", image, text) for number, (image, text) in pairs]


def write_inputs(covers: Sequence[Cover], folder: Path) -> Mapping[str, Path]:
    """The same rows as each kind of file."""
    inputs = {kind: folder / f"covers.{kind}" for kind in ("parquet", "jsonl", "tar")}
    with inputs["jsonl"].open("w", encoding="utf-8") as lines:
        for cover in covers:
            row = {"id": cover.id, "image_path": str(cover.image.resolve()), "text": cover.text}
            lines.write(json.dumps(row) + "\n")
    table = {
        "id": [cover.id for cover in covers],
        "image": [cover.image.read_bytes() for cover in covers],
        "text": [cover.text for cover in covers],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), inputs["parquet"])
    with tarfile.open(inputs["tar"], "w") as shard:
        for cover in covers:
            content = {cover.image.suffix: cover.image.read_bytes(), ".txt": cover.text.encode()}
            for suffix, data in content.items():
                member = tarfile.TarInfo(cover.id + suffix)
                member.size = len(data)
                shard.addfile(member, BytesIO(data))
    return inputs


def gateway_answers(stack: RunningStack, covers: Sequence[Cover]) -> list[dict[str, Any]]:
    def ask(cover: Cover) -> dict[str, Any]:
        form = {"image": cover.image.read_bytes(), "text": cover.text.encode()}
        answer = stack.http.post(f"/predictions/{MODEL}", files=form)
        return dict(answer.raise_for_status().json())

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(ask, covers))


def run_job(archive: Path, input: Path, out: Path) -> Times:
    script = Path(sys.executable).with_name("vlserve")
    command = [script, "batch", archive, "--input", input, "--output", out]
    before, began_at, first = psutil.Process().cpu_times(), time.monotonic(), (0.0, 0.0)
    driver = psutil.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    while driver.poll() is None:
        if not first[0] and any(out.glob("part-*")):
            first = time.monotonic() - began_at, _cpu_s(driver.pid)
        time.sleep(_LOOK_S)
    if driver.returncode:
        raise RuntimeError(f"the job over {input.name} ended with exit code {driver.returncode}")
    after = psutil.Process().cpu_times()
    user_s = after.children_user - before.children_user
    system_s = after.children_system - before.children_system
    return Times(*first, time.monotonic() - began_at, user_s + system_s)


def _cpu_s(pid: int) -> float:
    total = 0.0
    for process in tree(pid):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def compare(out: Path, answers: Sequence[Mapping[str, Any]]) -> tuple[int, int, float]:
    """Rows, rows with other labels than the gateway's, and the largest difference of scores."""
    parts = sorted(out.glob("part-*.jsonl"))
    rows = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
    if [row["row"] for row in rows] != list(range(len(answers))):
        raise RuntimeError(f"{out} has other rows than the input, or another order")
    other, largest = 0, 0.0
    for row, answer in zip(rows, answers, strict=True):
        own, gateway = row["tags"], answer["tags"]
        other += [tag["tag"] for tag in own] != [tag["tag"] for tag in gateway]
        differences = [abs(a["score"] - b["score"]) for a, b in zip(own, gateway, strict=True)]
        largest = max(largest, *differences)
    return len(rows), other, largest


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument(
        "--data", type=Path, nargs="+", help="data files of covers; default: those of the demo"
    )
    parser.add_argument("--out", type=Path, help="a JSON file with every figure")
    return parser.parse_args()


def main() -> int:
    options = _options()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="vlserve-covers-") as scratch:
        folder = Path(scratch)
        with own_stack(folder / "stack") as stack:
            release_demo(stack.settings, stack.control, print_line)
            demo = stack.settings.state_dir / "demo"
            data = options.data or [demo / "data" / "train.jsonl", demo / "data" / "val.jsonl"]
            covers = read_covers(data, options.rows)
            answers = gateway_answers(stack, covers)
        archive = demo / "archives" / f"{MODEL}-{VERSIONS[0]}.mar"
        for kind, input in write_inputs(covers, folder).items():
            out = folder / f"out-{kind}"
            times = run_job(archive, input, out)
            outcomes.append(Outcome(kind, *compare(out, answers), times))
    print_table(
        ("INPUT", "ROWS", "OTHER LABELS", "SCORES DIFFER BY", "FIRST PART S", "S", "CPU S"),
        [
            (
                outcome.kind,
                str(outcome.rows),
                str(outcome.other_labels),
                f"{outcome.largest_difference:.1e}",
                f"{outcome.times.first_part_s:.1f} ({outcome.times.first_part_cpu_s:.1f} of CPU)",
                f"{outcome.times.seconds:.1f}",
                f"{outcome.times.cpu_seconds:.1f}",
            )
            for outcome in outcomes
        ],
    )
    if options.out:
        text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
        options.out.write_text(text, encoding="utf-8")
    is_same = all(
        not outcome.other_labels and outcome.largest_difference <= TOLERANCE for outcome in outcomes
    )
    return int(not is_same)


if __name__ == "__main__":
    sys.exit(main())
