"""What a killed process costs: kill -9 of each one under load, one after the other.

    .venv/bin/python -m benchmarks.release.recovery    # versions without weights
    .venv/bin/python -m benchmarks.release.recovery --archive tagger-1.mar --archive tagger-2.mar
    .venv/bin/python -m benchmarks.release.recovery --instances 2 --only engine

Starts a stack of its own with two versions. A worker, the engine, the gateway and the control
service come back by themselves; after supervisord, and after everything at once (a machine that
restarts), `vlserve up` is called. Prints a table, writes JSON; the exit code is the verdict.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.drill.crash import TARGETS, Crash, crash, release_both
from vlserve.testing.clients import Load, drawn_questions
from vlserve.testing.editions import editions_of


def _print(crashes: Sequence[Crash]) -> None:
    def counts(kinds: Mapping[str, int]) -> str:
        return ", ".join(f"{kind}: {count}" for kind, count in kinds.items()) or "none"

    heads = ("KILLED", "REQUESTS", "LOST", "LAST LOST AFTER", "WHOLE AFTER", "EVENTS", "BREACHES")
    rows = [
        (
            crash.killed,
            crash.requests,
            counts(crash.lost),
            f"{crash.lost_for_s:.1f} s",
            f"{crash.whole_after_s:.1f} s",
            counts(Counter(crash.events)),
            "; ".join(crash.breaches) or "none",
        )
        for crash in crashes
    ]
    print_table(heads, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--archive", type=Path, action="append", help="a tagger's .mar")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--instances", type=int, default=1, help="of the engine")
    parser.add_argument("--only", choices=TARGETS, action="append")
    parser.add_argument("--out", type=Path, default=Path("recovery.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-recovery-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        editions = editions_of(folder, options.archive, questions)
        pair = list(islice(editions, 2))
        model = pair[0].archive.stem.rpartition("-")[0]
        crashes = []
        with own_stack(folder, options.instances) as stack:
            load = Load(stack.settings.gateway_url, model, options.clients, options.rate)
            release_both(stack, pair, model)
            for target in options.only or TARGETS:
                crashes.append(crash(stack, target, pair, questions, load))
                print_line(f"{target}: whole after {crashes[-1].whole_after_s} s")
    result = {
        "crashes": [asdict(outcome) for outcome in crashes],
        "load_average": os.getloadavg()[0],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(crashes)
    passed = not any(outcome.breaches for outcome in crashes)
    print_line("passed" if passed else "failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
