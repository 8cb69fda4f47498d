"""Many rows by an archive without weights, while the driver and workers of the job are killed.

    .venv/bin/python -m benchmarks.offline.kills --rows 1000000

The driver is killed three times, a worker at random every few seconds. In the end every row must
be there once, in order, with an answer. Peak memory is that of all processes of the job together,
pages that are shared counted once (PSS), looked at twice a second.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from vlserve.cli.output import print_line
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.probes import drawn_image
from vlserve.processor import usable_cores

LOOK_S = 0.5
_MIB = 1024**2


@dataclass
class Outcome:
    """``wrong``: what is not as it must be; empty: nothing."""

    rows: int
    seconds: float = 0.0
    driver_kills: int = 0
    worker_kills: int = 0
    peak_mib: float = 0.0
    wrong: list[str] = field(default_factory=list)


def write_rows(file: Path, rows: int) -> Path:
    """Rows with one drawn image and a text of their own."""
    image = drawn_image(0)
    with file.open("w", encoding="utf-8") as lines:
        for row in range(rows):
            lines.write(json.dumps({"id": f"r{row}", "image": image, "text": f"a {row % 97}"}))
            lines.write("\n")
    return file


def run(command: list[str], outcome: Outcome, plan: Iterator[float], worker_kill_s: float) -> int:
    """Start the job once; kill workers, and at the next time of ``plan`` the driver. Returns its
    exit code."""
    draw = random.Random(outcome.driver_kills)
    driver = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until, worker_at = next(plan, None), time.monotonic() + worker_kill_s
    began_at = time.monotonic()
    while driver.poll() is None:
        time.sleep(LOOK_S)
        workers = _children(driver)
        outcome.peak_mib = max(outcome.peak_mib, _memory_mib([driver, *workers]))
        if until is not None and time.monotonic() - began_at > until:
            driver.kill()
            outcome.driver_kills += 1
            until = None
        elif workers and time.monotonic() > worker_at:
            with suppress(psutil.Error):
                draw.choice(workers).kill()
                outcome.worker_kills += 1
            worker_at = time.monotonic() + worker_kill_s * draw.uniform(0.5, 1.5)
    return int(driver.wait())


def _children(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return list(driver.children())
    except psutil.Error:
        return []  # it has just ended


def _memory_mib(processes: list[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / _MIB


def check(out: Path, outcome: Outcome) -> None:
    """Read every row of the output."""
    row = errors = 0
    for part in sorted(out.glob("part-*.jsonl")):
        with part.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if (record["row"], record["id"]) != (row, f"r{row}"):
                    outcome.wrong.append(f"{part.name} has row {record['row']} at place {row}")
                    return
                row, errors = row + 1, errors + ("error_code" in record)
    if row != outcome.rows:
        outcome.wrong.append(f"{row} rows of {outcome.rows}")
    if errors:
        outcome.wrong.append(f"{errors} rows have no answer")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--driver-kill", type=float, default=60.0, help="s after each start")
    parser.add_argument("--worker-kill", type=float, default=20.0, help="s between two, about")
    parser.add_argument("--out", type=Path, help="a JSON file with the figures")
    return parser.parse_args()


def main() -> int:
    options = _options()
    outcome = Outcome(options.rows)
    with tempfile.TemporaryDirectory(prefix="vlserve-kills-") as scratch:
        folder = Path(scratch)
        archive = pack_echo(folder, "tagger", 1)
        file, out = write_rows(folder / "rows.jsonl", options.rows), folder / "out"
        script = Path(sys.executable).with_name("vlserve")
        command = [str(script), "batch", str(archive), "--input", str(file), "--output", str(out)]
        began_at, plan = time.monotonic(), iter([options.driver_kill] * 3)
        code = None
        while code != 0 and time.monotonic() - began_at < 24 * 3600:
            kills = outcome.driver_kills
            code = run(
                [*command, "--workers", str(options.workers)], outcome, plan, options.worker_kill
            )
            if code and kills == outcome.driver_kills:
                outcome.wrong.append(f"the job ended with exit code {code}")
                break
        outcome.seconds = round(time.monotonic() - began_at, 1)
        check(out, outcome)
    figures = asdict(outcome)
    print_line(", ".join(f"{name} {figures[name]}" for name in figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
