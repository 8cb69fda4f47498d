"""Ask one URL in a closed loop: answers a second, and latency, by the number of connections.

    .venv/bin/python -m benchmarks.serving.load --url http://127.0.0.1:8080/predictions/tagger

Prints a table, or a line of JSON for each number of connections.
"""

import argparse
import json
import sys
from dataclasses import asdict

from benchmarks.lib.closed_loop import load
from benchmarks.lib.photos import BODIES, photos
from vlserve.cli.output import print_line, print_table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--connections", default="1,4,16,64")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--warm-up", type=float, default=1.5, help="seconds, before each")
    parser.add_argument("--body", choices=sorted(BODIES), default="form")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    options = _options()
    bodies = [BODIES[options.body](photo) for photo in photos()]
    headers = dict(header.split(":", 1) for header in options.header)
    rows = []
    for connections in map(int, options.connections.split(",")):
        result = load([options.url], bodies, connections, options.seconds, options.warm_up, headers)
        if options.json:
            print(json.dumps(asdict(result)), flush=True)
        rows.append(
            (
                str(connections),
                f"{result.per_s:.1f}",
                f"{result.p50_ms:.1f}",
                f"{result.p99_ms:.1f}",
                f"{result.client_cpus:.3f}",
                ", ".join(f"{count} x {why}" for why, count in result.failures.items()) or "-",
            )
        )
    if not options.json:
        heads = ("CONNECTIONS", "ANSWERS/S", "P50 MS", "P99 MS", "CLIENT CPUS", "FAILURES")
        print_table(heads, rows)
        print_line(f"{len(bodies)} bodies of {sum(len(b.body) for b in bodies) // len(bodies)} B")
    return 0


if __name__ == "__main__":
    sys.exit(main())
