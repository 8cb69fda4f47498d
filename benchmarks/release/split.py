"""How a release's callers are split: exactly by weight, always the same way, monotone.

    .venv/bin/python -m benchmarks.release.split

A gateway of its own, before a stand-in engine. Three models release at once, each with a salt of
its own; 10,000 callers with a sticky key ask each of them once at every weight, and as many
requests come without a key. Every line of the table is tested against its weight: chi-square with
one degree of freedom, exact for the counts that were seen. Exit code 1 when one fails.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.cli.output import print_line, print_table
from vlserve.drill.caller_split import Route, measure
from vlserve.testing.own_gateway import own_gateway
from vlserve.testing.stand_in_engine import stand_in


@contextmanager
def _gateway() -> Iterator[tuple[str, Route]]:
    with (
        tempfile.TemporaryDirectory(prefix="vlserve-split-") as folder,
        own_gateway(Path(folder)) as own,
        stand_in("engine-0") as engine,
    ):
        yield own.url, lambda models: own.route(models, [engine])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--callers", type=int, default=10_000)
    options = parser.parse_args()
    with _gateway() as (url, route):
        result = measure(url, route, options.callers)
    rows = [
        (share.model, keys, share.weight, share.requests, share.on_candidate, f"{share.p:.3f}")
        for keys, shares in (("yes", result.keyed), ("no", result.keyless))
        for share in shares
    ]
    print_table(("MODEL", "KEY", "WEIGHT", "ASKED", "ON THE CANDIDATE", "P"), rows)
    print_line(f"callers that left the candidate as its weight rose: {result.left}")
    print_line(f"callers moved by another model's release: {result.disturbed}")
    both = result.in_both
    print_line(
        f"of {both.requests} callers on one candidate at 50 %, {both.on_candidate} are on the "
        f"other's too (p {both.p:.3f})"
    )
    problems = result.problems()
    for problem in problems:
        print_line(problem)
    print_line("failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
