"""Whether the first thousand requests after a release are as fast as the later ones.

    .venv/bin/python -m benchmarks.serving.warm_up    # versions without weights
    .venv/bin/python -m benchmarks.serving.warm_up --archive tagger-1.mar --connections 8

Starts a stack of its own. Each round registers a new version of the archive and releases it under a
closed loop of Locust's, then compares the version's first thousand answers with the thousand after
them: median, p99 and answers a second, as ratios (1: as fast; below: the first were faster in
latency, slower in throughput). The first round follows right after `up`, so its engine is cold.
The noise of the machine is told by the same ratio of the two thousands after those.
Prints a table and writes JSON.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.client import ControlClient
from vlserve.loadgen.request_record import RequestRecord, read_records
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.runtime.archive import verify_archive
from vlserve.testing.editions import Edition, echo_editions, repacked_editions

LENIENT_MS = 1e9
_POLL_S = 0.1


@dataclass(frozen=True)
class Stretch:
    """Answers one after the other."""

    p50_ms: float
    p99_ms: float
    rps: float


@dataclass(frozen=True)
class Round:
    number: int
    register_s: float
    first: Stretch
    second: Stretch
    third: Stretch
    failures: int


def stretches(
    records: Sequence[RequestRecord], version: int, count: int
) -> tuple[Stretch, Stretch, Stretch]:
    """Of one version's right answers, by the time that they were due. SystemExit when there are
    not enough."""
    answers = [
        (r.due_s, r.latency_ms)
        for r in records
        if r.version == version and r.failure is None and r.latency_ms is not None
    ]
    answers.sort()
    if len(answers) <= 3 * count:
        raise SystemExit(
            f"version {version} answered {len(answers)} times, {3 * count + 1} are needed: "
            "give more --seconds"
        )
    first, second, third = (_stretch(answers[at * count :], count) for at in range(3))
    return first, second, third


def _stretch(answers: Sequence[tuple[float, float]], count: int) -> Stretch:
    latencies = [latency_ms for _, latency_ms in answers[:count]]
    seconds = answers[count][0] - answers[0][0]
    p50, p99 = np.percentile(latencies, (50, 99))
    return Stretch(float(p50), float(p99), count / seconds)


def run_round(
    number: int,
    model: str,
    control: ControlClient,
    url: str,
    edition: Edition,
    load: argparse.Namespace,
    folder: Path,
) -> Round:
    """One version registered and released; the load starts before and ends after."""
    version = edition.version
    first_ever = number == 1
    if first_ever:  # nothing answers before it, so nothing can be asked
        start = time.monotonic()
        control.register(edition.archive)
        register_s = time.monotonic() - start
        control.release(model, version)
    plan = StressPlan(
        url=url,
        model=model,
        archive=edition.archive,
        data=load.data,
        users=load.connections,
        duration_s=load.seconds,
        warm_up_s=0,
        max_error_rate=1.0,
        max_p99_ms=LENIENT_MS,
    )
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_stress, plan, folder)
        if not first_ever:
            requests = folder / "requests.jsonl"
            while not (requests.exists() and requests.stat().st_size) and not future.done():
                time.sleep(_POLL_S)
            start = time.monotonic()
            control.register(edition.archive)
            register_s = time.monotonic() - start
            control.release(model, version)
        future.result()
    records = read_records(folder / "requests.jsonl")
    failures = sum(record.failure is not None for record in records)
    return Round(number, register_s, *stretches(records, version, load.stretch), failures)


def rows_of(rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    rows = []
    for round_ in rounds:
        pairs = [(round_.first, round_.second), (round_.second, round_.third)]
        ratios = [
            f"{getattr(a, name) / getattr(b, name):.2f}"
            for a, b in pairs
            for name in ("p50_ms", "p99_ms", "rps")
        ]
        plain = (f"{round_.second.rps:.1f}/s", f"{round_.second.p50_ms:.1f} ms")
        failures = str(round_.failures)
        rows.append((str(round_.number), f"{round_.register_s:.1f} s", *plain, *ratios, failures))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, help="Default: an archive without weights.")
    parser.add_argument("--data", type=Path, help="Covers and titles; default: the probes.")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=60, help="Of each round.")
    parser.add_argument("--stretch", type=int, default=1000, help="Answers that are compared.")
    parser.add_argument("--out", type=Path, help="Write the figures as JSON.")
    load = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = verify_archive(load.archive).model if load.archive else "warm"
        if load.archive:
            editions = repacked_editions(folder, [load.archive], [])
        else:
            editions = echo_editions(folder, model, [])
        with own_stack(folder / "stack") as stack:
            url = stack.settings.gateway_url
            for number, edition in enumerate(islice(editions, load.rounds), start=1):
                runs = folder / f"round-{number}"
                rounds.append(run_round(number, model, stack.control, url, edition, load, runs))
                print_line(f"round {number} of {load.rounds} done")
                if number > 1:
                    stack.control.unload(model, edition.version - 1)
    heads = ("ROUND", "REGISTER", "LATER", "P50", "FIRST/LATER: P50", "P99", "RATE")
    print_table((*heads, "NOISE: P50", "P99", "RATE", "FAILURES"), rows_of(rounds))
    if load.out:
        load.out.write_text(
            json.dumps([asdict(round_) for round_ in rounds], indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
