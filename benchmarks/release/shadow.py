"""What clients feel of a shadow: nothing, also of one that is slow, or dead.

    .venv/bin/python -m benchmarks.release.shadow

A gateway of its own; a stand-in engine for the stable version, one for each kind of shadow. Clients
ask at a fixed rate while shadows come and go, in rounds, so that whatever else the machine does
meets all alike. Prints a table, writes JSON; exit code 1 when a client lost a request, or no copies
were made.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vlserve.cli.output import print_line, print_table
from vlserve.control.domain import ModelRoute
from vlserve.drill.shadow_cost import KINDS, MODEL, STABLE, Kind, ShadowCost, engines, measure
from vlserve.testing.clients import Load, drawn_questions
from vlserve.testing.own_gateway import own_gateway


def _print(costs: Mapping[Kind, ShadowCost]) -> None:
    rows = []
    for kind, cost in costs.items():
        p99 = cost.rounds_percentile_ms(99)
        rows.append(
            (
                kind.name,
                f"{kind.percent}%",
                cost.requests,
                sum(cost.failures.values()),
                cost.copies,
                f"{cost.percentile_ms(50):.1f}",
                f"{cost.percentile_ms(99):.1f}",
                f"{p99[0]:.1f} to {p99[1]:.1f}",
            )
        )
    heads = ("SHADOW", "COPIED", "REQUESTS", "LOST", "COPIES LOGGED", "P50 MS", "P99 MS", "ROUNDS")
    print_table(heads, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each kind in each round")
    parser.add_argument("--out", type=Path, default=Path("shadow.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-shadow-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        with own_gateway(folder) as own, engines(KINDS) as instances:
            own.route([ModelRoute(MODEL, {STABLE: 100}, (STABLE,))], instances[KINDS[0]])
            load = Load(own.url, MODEL, options.clients, options.rate)
            costs, losses = measure(
                own, instances, questions, load, options.rounds, options.seconds
            )
    result = [
        {
            "shadow": kind.name,
            "percent": kind.percent,
            "requests": cost.requests,
            "failures": dict(cost.failures),
            "copies": cost.copies,
            "p50_ms": cost.percentile_ms(50),
            "p99_ms": cost.percentile_ms(99),
            "rounds_p99_ms": cost.rounds_percentile_ms(99),
        }
        for kind, cost in costs.items()
    ]
    whole = {"kinds": result, "lost": losses, "load_average": os.getloadavg()[0]}
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    _print(costs)
    print_line(f"requests lost, also while shadows came and went: {losses}")
    copied = all(bool(cost.copies) == bool(kind.percent) for kind, cost in costs.items())
    print_line("passed" if copied and not losses else "failed")
    return 0 if copied and not losses else 1


if __name__ == "__main__":
    sys.exit(main())
