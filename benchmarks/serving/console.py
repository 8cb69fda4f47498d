"""What the console costs the control service, in CPU seconds of its process.

    .venv/bin/python -m benchmarks.serving.console --viewers 5 --seconds 60

Starts a stack of its own with an Echo tagger, a rollout of its second version, and an access log of
the last 15 minutes (`--lines`). Prints ms of CPU for each page, and the share of a core that the
service takes without and with viewers of the pages with live figures.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.gateway.recent_requests import KEPT_S
from vlserve.exporter.echo import pack_echo
from vlserve.supervisor import Supervisor
from vlserve.testing.stack import RunningStack

MODEL = "watched"
PAGES = (
    "",
    f"models/{MODEL}",
    f"models/{MODEL}/rollout",
    f"models/{MODEL}/pairs",
    f"models/{MODEL}/try",
    f"models/{MODEL}/history",
    f"models/{MODEL}/versions/1",
    "load-tests",
    "batch-jobs",
)
LIVE = ("live/now", f"live/models/{MODEL}", f"live/models/{MODEL}/rollout")
_MINUTES_S = 900
_PAUSE_S = KEPT_S + 0.1
"""Between two loads of a page: figures are to be counted anew."""


@dataclass(frozen=True)
class Costs:
    """``page_ms``: page -> ms of CPU. ``closed``, ``watched``: share of a core that the service
    takes without viewers, and with ``viewers``."""

    page_ms: dict[str, float]
    closed: float
    watched: float
    viewers: int


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def write_log(log: Path, lines: int) -> None:
    """Write an access log of the last 15 minutes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with log.open("w", encoding="utf-8") as file:
        for number in range(lines):
            at = datetime.fromtimestamp(now - _MINUTES_S * (1 - number / lines), UTC)
            line = {
                "at": at.isoformat(),
                "request_id": f"r{number}",
                "model": MODEL,
                "version": "1",
                "status": 200,
                "duration_ms": 20 + number % 17,
                "tries": 1,
                "schema": 1,
            }
            file.write(json.dumps(line) + "\n")


def page_costs(
    browser: httpx.Client, control: psutil.Process, pages: Sequence[str], rounds: int, idle: float
) -> dict[str, float]:
    """Return ms of CPU for each page, of which ``idle`` (share of a core) is taken off."""
    costs = {}
    for page in pages:
        total_s = 0.0
        for _ in range(rounds):
            time.sleep(_PAUSE_S)
            before, start = cpu_s(control), time.monotonic()
            browser.get(f"/console/{page}").raise_for_status()
            total_s += cpu_s(control) - before - idle * (time.monotonic() - start)
        costs[page] = 1000 * total_s / rounds
    return costs


def share_of_core(control: psutil.Process, seconds: float) -> float:
    """Return the share of a core that the process takes from now on."""
    before, start = cpu_s(control), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(control) - before) / (time.monotonic() - start)


@contextmanager
def viewer(browser: httpx.Client, path: str) -> Iterator[None]:
    """Follow the live figures of a page in a thread while the body runs."""
    stop = threading.Event()

    def follow() -> None:
        with (
            suppress(httpx.TransportError),  # the stack ends first
            browser.stream("GET", f"/console/{path}", timeout=None) as events,
        ):
            for _ in events.iter_raw():
                if stop.is_set():
                    return

    thread = threading.Thread(target=follow, daemon=True)  # it ends with the stack
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--viewers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each share of a core")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each page")
    parser.add_argument("--lines", type=int, default=100_000, help="of the access log")
    parser.add_argument("--out", type=Path, default=Path("console.json"))
    return parser.parse_args()


def _measure(stack: RunningStack, options: argparse.Namespace) -> Costs:
    pids = {process.name: process.pid for process in Supervisor(stack.settings).processes()}
    control = psutil.Process(pids["control"])
    url = stack.settings.control_url
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as browser:
        idle = share_of_core(control, options.seconds)
        browser.get(stack.control.console_link().path).raise_for_status()
        page_ms = page_costs(browser, control, PAGES, options.rounds, idle)
        with ExitStack() as viewers:
            for number in range(options.viewers):
                viewers.enter_context(viewer(browser, LIVE[number % len(LIVE)]))
            time.sleep(_PAUSE_S)
            busy = share_of_core(control, options.seconds)
    return Costs(page_ms, idle, busy, options.viewers)


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="vlserve-console-") as scratch:
        folder = Path(scratch)
        write_log(folder / "state" / "logs" / "access.jsonl", options.lines)
        with own_stack(folder, workers=1) as stack:
            for version in (1, 2):
                stack.control.register(pack_echo(folder, MODEL, version))
            stack.control.release(MODEL, 1)
            stack.control.start_rollout(MODEL, 2, {"hold_s": 3600})
            costs = _measure(stack, options)
    options.out.write_text(json.dumps(asdict(costs), indent=1) + "\n", encoding="utf-8")
    rows = [(page or "now", f"{ms:.1f}") for page, ms in costs.page_ms.items()]
    print_table(("PAGE", "MS OF CPU"), rows)
    print_line(f"closed: {100 * costs.closed:.2f} % of a core")
    print_line(f"{costs.viewers} viewers: {100 * costs.watched:.2f} % of a core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
