"""Hours of traffic in short: right answers throughout, and nothing that grows.

    .venv/bin/python -m benchmarks.endurance.soak --seconds 620

Starts a stack of its own with a tagger without weights. Clients ask at a steady rate, by sticky
key, on the version's own path and neither, and hold each answer against the right one; beside them
a caller sends bodies that must be refused. Prints a table, writes JSON; exit code 1 when a request
got no right answer, or a process of the stack was replaced.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

import httpx

from benchmarks.lib.memory import Held, growth, watching
from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.stack.stopping import processes
from vlserve.testing.clients import Clients, Load, drawn_questions
from vlserve.testing.editions import echo_editions

MODEL = "soaked"
BAD_BODIES = (
    (b"", "multipart/form-data; boundary=b"),
    (b"{", "application/json"),
    (b'{"text": 3}', "application/json"),
    (b'{"image": "AAAA", "text": "a cat"}', "application/json"),
    (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b"),
    (b"\x00" * 4096, "application/json"),
)


@contextmanager
def bad_caller(url: str, pause_s: float) -> Iterator[Counter[int]]:
    """Send bodies that must be refused while the body runs; counts the statuses."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(timeout=30.0, trust_env=False) as http:
            for body, kind in cycle(BAD_BODIES):
                if stop.wait(pause_s):
                    return
                reply = http.post(url, content=body, headers={"Content-Type": kind})
                statuses[reply.status_code] += 1

    thread = threading.Thread(target=send, name="bad caller")
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=620.0, help="of traffic")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    return parser.parse_args()


def _rows(ends: tuple[Held, Held] | None) -> list[tuple[str, str]]:
    if ends is None:
        return [("held", "too short a run to compare")]
    first, last = ends
    return [
        ("memory, second and last quarter", f"{first.memory_mib:.0f}, {last.memory_mib:.0f} MiB"),
        ("open files", f"{first.files}, {last.files}"),
        ("threads", f"{first.threads}, {last.threads}"),
    ]


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-soak-") as scratch:
        folder = Path(scratch)
        questions = drawn_questions(folder / "covers")
        (edition,) = islice(echo_editions(folder, MODEL, questions), 1)
        with own_stack(folder) as stack:
            stack.control.register(edition.archive)
            stack.control.release(MODEL, edition.version)
            url = stack.settings.gateway_url
            load = Load(url, MODEL, options.clients, options.rate)
            clients = Clients(load, questions, right={edition.version: edition.answers})
            before = {process.pid for process in processes(stack.settings)}
            with (
                watching(stack.settings, max(options.seconds / 60, 0.2)) as watch,
                bad_caller(f"{url}/predictions/{MODEL}", pause_s=0.5) as statuses,
                clients.asking(),
            ):
                time.sleep(options.seconds)
            lasting = {process.pid for process in processes(stack.settings)} == before
    failures = Counter(exchange.failure for exchange in clients.exchanges if exchange.failure)
    wrong_statuses = {
        status: count for status, count in statuses.items() if not 400 <= status < 500
    }
    passed = bool(clients.exchanges) and not failures and not wrong_statuses and lasting
    ends = growth(watch.held)
    result = {
        "seconds": options.seconds,
        "requests": len(clients.exchanges),
        "failures": dict(failures),
        "refused": dict(statuses),
        "processes_replaced": not lasting,
        "held": [asdict(end) for end in ends] if ends else None,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [
        ("requests", str(len(clients.exchanges))),
        ("not answered right", str(sum(failures.values()))),
        ("bad bodies refused", ", ".join(f"{n} by {status}" for status, n in statuses.items())),
        ("processes", "the same throughout" if lasting else "replaced"),
        *_rows(ends),
    ]
    print_table(("", ""), rows)
    print_line("passed" if passed else "failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
