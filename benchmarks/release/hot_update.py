"""Hot updates under load: no request lost, no wrong version, the new version at once.

    .venv/bin/python -m benchmarks.release.hot_update    # versions without weights
    .venv/bin/python -m benchmarks.release.hot_update --archive tagger-1.mar --archive tagger-2.mar
    .venv/bin/python -m benchmarks.release.hot_update --engine triton --rounds 500

Starts a stack of its own, finds the highest rate that it holds, and lets 20 keep-alive clients ask
at half of it. Each round registers a new version, releases it, rolls it back, releases it again and
unloads the one before. Prints a table, writes JSON; the exit code is the verdict. From 24 rounds on
it also tells the memory of each program over the rounds, and what they left behind. Ctrl-C ends it
after the round that runs; the rounds before are reported.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from benchmarks.lib.leftovers import Inventory, Slope, inventory, slopes
from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.client import ControlClient
from vlserve.drill.hot_update import PAUSE_S, HotUpdates, judge, update_in_rounds
from vlserve.loadgen.max_rate import find_limit
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.testing.clients import Clients, Load, drawn_questions
from vlserve.testing.editions import Edition, editions_of

_LEAST_FOR_SLOPES = 24


def _limit_per_s(
    control: ControlClient, url: str, edition: Edition, model: str, out: Path
) -> float:
    """What `vlserve stress --find-limit` reports for this version."""
    control.register(edition.archive)
    control.release(model, edition.version)
    plan = StressPlan(url=url, model=model, rate_per_s=8.0, duration_s=10)
    rate_per_s = find_limit(plan, out, print_line).highest_held_per_s
    if rate_per_s is None:
        raise SystemExit("no rate held: half of it cannot be asked")
    return rate_per_s


def _until(
    interrupt: threading.Event, deadline: float, editions: Iterable[Edition]
) -> Iterator[Edition]:
    """Yield editions until an interrupt or a time of the monotonic clock."""
    for edition in editions:
        if interrupt.is_set() or time.monotonic() > deadline:
            return
        yield edition


def _interrupt() -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set, in place of ending the process."""
    event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: event.set())
    return event


def _print(result: HotUpdates) -> None:
    def counts(kinds: Mapping[str, int]) -> str:
        return ", ".join(f"{kind}: {count}" for kind, count in kinds.items()) or "none"

    limit = f" (limit {result.limit_per_s:g}/s)" if result.limit_per_s else ""
    rows = [
        ("load", f"{result.clients} clients, {result.rate_per_s:g}/s{limit}"),
        ("rounds", result.rounds),
        ("requests", result.requests),
        ("lost", counts(result.lost)),
        ("wrong", counts(result.wrong)),
        ("connections opened", result.connections),
        ("begun after a release, answered by the old version", result.stale),
        ("  latest after the release returned", f"{result.largest_lag_ms:.1f} ms"),
        ("slowest first answer after a release", f"{result.slowest_first_answer_ms:.1f} ms"),
        ("p50, p99", f"{result.p50_ms:.1f} ms, {result.p99_ms:.1f} ms"),
        ("longest stall", f"{result.longest_stall_ms:.1f} ms ({result.stalled_during})"),
        ("longest time without an answer", f"{result.longest_silence_ms:.1f} ms"),
        *(
            (f"{verb}, median and longest", f"{median:.0f} ms, {longest:.0f} ms")
            for verb, (median, longest) in result.took_ms.items()
        ),
        ("load average before, after", "{:.1f}, {:.1f}".format(*result.load_average)),
    ]
    print_table(("", ""), rows)
    print_line("passed" if result.passed else f"failed: {'; '.join(result.breaches)}")


def _print_kept(
    growth: Mapping[str, Slope], first: Inventory, last: Inventory, after: Inventory
) -> None:
    rows = [
        (
            name,
            f"{slope.start_mib:.1f}",
            f"{slope.end_mib:.1f}",
            f"{slope.per_100_rounds:+.2f} ({slope.low:+.2f} to {slope.high:+.2f})",
            f"{first.open_files.get(name, 0)}, {last.open_files.get(name, 0)}",
        )
        for name, slope in growth.items()
    ]
    heads = ("PROGRAM", "MIB AT START", "AT END", "MIB IN 100 ROUNDS (95 %)", "OPEN FILES")
    print_table(heads, rows)
    moments = (("first round", first), ("last round", last), ("after down", after))
    print_table(
        ("", "PROCESSES", "FILES", "SOCKETS", "SHARED MEMORY"),
        [
            (
                name,
                sum(moment.processes.values()),
                moment.files,
                moment.sockets,
                moment.shared_memory,
            )
            for name, moment in moments
        ],
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--archive",
        type=Path,
        action="append",
        help="a tagger's .mar, served under new version numbers; several take turns",
    )
    parser.add_argument("--engine", choices=("torchserve", "triton"), default="torchserve")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="no round begins after so long"
    )
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=float, help="requests a second; default: half the limit")
    parser.add_argument(
        "--pause", type=float, default=PAUSE_S, help="seconds after each step; default: %(default)g"
    )
    parser.add_argument("--out", type=Path, default=Path("hot_update.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-hot-update-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        editions = editions_of(folder, options.archive, questions)
        # All at once: packing beside the load would be measured with it.
        all_editions = list(islice(editions, options.rounds + 1))
        model = all_editions[0].archive.stem.rpartition("-")[0]
        inventories: list[Inventory] = []
        with own_stack(folder, engine=options.engine) as stack:

            def round_over(line: str) -> None:
                inventories.append(inventory(stack.settings))
                print_line(line)

            url, limit_per_s = stack.settings.gateway_url, None
            if options.rate is None:
                limit_per_s = _limit_per_s(
                    stack.control, url, all_editions[0], model, folder / "limit"
                )
            rate_per_s = options.rate or (limit_per_s or 0.0) / 2
            load = Load(url, model, options.clients, rate_per_s)
            clients = Clients(load, questions, right={})
            before = os.getloadavg()[0]
            deadline = time.monotonic() + 60 * options.minutes
            wanted = _until(_interrupt(), deadline, all_editions)
            steps, exchanges = update_in_rounds(
                stack.control, clients, wanted, options.rounds, round_over, options.pause
            )
            result = judge(
                load,
                limit_per_s,
                clients.connections,
                steps,
                exchanges,
                (before, os.getloadavg()[0]),
            )
        after = inventory(stack.settings)
    growth = slopes(inventories) if len(inventories) >= _LEAST_FOR_SLOPES else {}
    whole = {
        **asdict(result),
        "engine": options.engine,
        "memory": {name: asdict(slope) for name, slope in growth.items()},
        "first_round": asdict(inventories[0]) if inventories else None,
        "last_round": asdict(inventories[-1]) if inventories else None,
        "after_down": asdict(after),
    }
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    _print(result)
    if growth:
        _print_kept(growth, inventories[0], inventories[-1], after)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
