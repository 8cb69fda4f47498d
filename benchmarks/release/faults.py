"""What a fault of an engine costs the clients who are there at that moment.

    .venv/bin/python -m benchmarks.release.faults    # both engines, with one worker and with two
    .venv/bin/python -m benchmarks.release.faults --engine triton --workers 2 --rounds 10

Four connections ask an Echo tagger, which takes 20 ms a batch, each again as soon as it has its
answer. A round does one thing: kill -9 of a worker (Triton's stub) at any moment; of a worker that
is inside a batch; of the server (tritonserver, Java); SIGSTOP of a worker. Then all is waited for
until every worker is back. A worker has none or one beside it, a server none or one other instance.
Prints a table, writes JSON; the exit code is 1 where a request was lost by the death of one of two.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.lib.own_stack import own_stack
from vlserve.cli.output import print_line, print_table
from vlserve.control.domain import EngineKind
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.drill.stack_programs import program_of
from vlserve.errors import ControlError, StackError
from vlserve.exporter.echo import pack_echo
from vlserve.loadgen.probe_requests import vary_probes
from vlserve.stack.stopping import processes
from vlserve.testing.stack import RunningStack
from vlserve_worker.crash_notes import notes_folder

MODEL = "echo"
CONNECTIONS = 4
BATCH_MS = 20.0
FAULTS = ("worker killed", "worker killed in a batch", "server killed", "worker stopped")
_SPACES = 4000
_NOTED_WITHIN_S = 60.0
_CALM_S, _AFTERWARDS_S, _WHOLE_WITHIN_S, _POLL_S = 1.0, 1.0, 600.0, 0.1


@dataclass
class Seen:
    """What the clients of one fault saw."""

    engine: EngineKind
    fault: str
    workers: int
    instances: int
    rounds: int = 0
    requests: int = 0
    """Answered or given up from each fault on until all was whole."""
    lost: dict[str, int] = field(default_factory=dict)
    worst_s: float = 0.0
    """The longest that a request took."""
    whole_after_s: list[float] = field(default_factory=list)


class Callers:
    """Clients in a closed loop; ``answers``: when each was answered, after how long, and why it
    was lost."""

    def __init__(self, url: str, bodies: Sequence[bytes]) -> None:
        self.answers: list[tuple[float, float, str]] = []
        self._url, self._bodies = url, bodies
        self._stopping = threading.Event()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """They ask while the body runs."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            runs = [pool.submit(self._run, number) for number in range(CONNECTIONS)]
            try:
                yield
            finally:
                self._stopping.set()
                for run in runs:
                    run.result()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        headers = {"Content-Type": "application/json"}
        with httpx.Client(trust_env=False, timeout=120.0, headers=headers) as http:
            while not self._stopping.is_set():
                start = time.monotonic()
                loss = _outcome(http, self._url, self._body(chance))
                now = time.monotonic()
                self.answers.append((now, now - start, loss))

    def _body(self, chance: random.Random) -> bytes:
        """Return one that was not sent before: who kills two workers is refused for a while."""
        return chance.choice(self._bodies) + b" " * chance.randrange(_SPACES)


def _outcome(http: httpx.Client, url: str, body: bytes) -> str:
    """Return why a request was lost; empty where it was answered."""
    try:
        response = http.post(url, content=body)
    except httpx.HTTPError as error:
        return type(error).__name__
    if response.is_success:
        return ""
    with suppress(ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.json()['error']['code']}"
    return str(response.status_code)


def _workers(stack: RunningStack) -> list[psutil.Process]:
    return [process for process in processes(stack.settings) if program_of(process) == "worker"]


def _in_a_batch(stack: RunningStack) -> psutil.Process:
    """Return a worker that has noted what it is at work on (vlserve_worker.crash_notes).

    Notes are named by their workers' process ids.
    """
    folder = notes_folder(stack.settings.state_dir, MODEL, 1)
    workers = {str(worker.pid): worker for worker in _workers(stack)}
    deadline = time.monotonic() + _NOTED_WITHIN_S
    while time.monotonic() < deadline:
        for note in folder.glob("*.note"):
            with suppress(OSError):
                pid = note.stem.partition("-")[0]
                if note.read_bytes()[:1] not in (b"", b"\0") and pid in workers:
                    return workers[pid]
        time.sleep(0.001)
    raise RuntimeError(f"no worker noted a batch within {_NOTED_WITHIN_S:g} s")


def _strike(stack: RunningStack, fault: str) -> set[int]:
    """Do it; return the ids of the processes that are to be replaced."""
    if fault == "server killed":
        victim = next(
            process for process in processes(stack.settings) if program_of(process) == "engine"
        )
    elif fault == "worker killed in a batch":
        victim = _in_a_batch(stack)
    else:
        victim = random.choice(_workers(stack))
    victim.send_signal(signal.SIGSTOP if fault == "worker stopped" else signal.SIGKILL)
    return {victim.pid}


def _is_whole(stack: RunningStack, engine: EngineGroup, victims: set[int], workers: int) -> bool:
    if victims & {process.pid for process in processes(stack.settings)}:
        return False
    try:
        instances = engine.loaded()
        healthy = stack.control.health().status == "ok"
    except (ControlError, StackError):
        return False
    return (
        healthy
        and len(instances) == stack.settings.engine.instances
        and all(
            version.workers_ready == workers
            for versions in instances.values()
            for version in versions.values()
        )
        and all(instances.values())
    )


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WHOLE_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not whole after {_WHOLE_WITHIN_S:g} s")
        time.sleep(_POLL_S)


def _round(
    stack: RunningStack, engine: EngineGroup, outcome: Seen, bodies: Sequence[bytes]
) -> None:
    _wait_until(lambda: _is_whole(stack, engine, set(), outcome.workers), "before")
    callers = Callers(f"{stack.settings.gateway_url}/predictions/{MODEL}", bodies)
    with callers.asking():
        time.sleep(_CALM_S)
        struck_at = time.monotonic()
        victims = _strike(stack, outcome.fault)
        _wait_until(lambda: _is_whole(stack, engine, victims, outcome.workers), outcome.fault)
        outcome.whole_after_s.append(round(time.monotonic() - struck_at, 1))
        time.sleep(_AFTERWARDS_S)
    answers = [answer for answer in callers.answers if answer[0] >= struck_at]
    outcome.rounds += 1
    outcome.requests += len(answers)
    outcome.lost = dict(Counter(outcome.lost) + Counter(loss for _, _, loss in answers if loss))
    outcome.worst_s = max(outcome.worst_s, *(round(duration_s, 2) for _, duration_s, _ in answers))


def _layouts(count: int) -> dict[tuple[int, int], list[str]]:
    """Return (workers, instances) -> the faults there: a server has a second beside it where there
    are two instances, a worker where there are two workers."""
    layouts: dict[tuple[int, int], list[str]] = {}
    for fault in FAULTS:
        layout = (1, count) if fault == "server killed" else (count, 1)
        layouts.setdefault(layout, []).append(fault)
    return layouts


def _measure(
    kind: EngineKind, workers: int, instances: int, faults: Sequence[str], rounds: int
) -> Iterator[Seen]:
    with tempfile.TemporaryDirectory(prefix="vlserve-faults-") as folder:
        archive = pack_echo(Path(folder), MODEL, 1, delay_ms=BATCH_MS)
        bodies = [request.body for request in vary_probes(archive, 20)]
        with own_stack(Path(folder), instances, kind, workers) as stack:
            stack.control.register(archive)
            stack.control.release(MODEL, 1)
            settings = stack.settings
            with closing(EngineGroup(endpoints(settings), settings.engine)) as engine:
                for fault in faults:
                    outcome = Seen(kind, fault, workers, instances)
                    for _ in range(rounds):
                        _round(stack, engine, outcome, bodies)
                    print_line(str(outcome))
                    yield outcome


def _print(outcomes: Sequence[Seen]) -> None:
    rows = [
        (
            outcome.engine,
            outcome.fault,
            f"{outcome.workers} x {outcome.instances}",
            outcome.rounds,
            f"{sum(outcome.lost.values())} of {outcome.requests}",
            ", ".join(f"{kind}: {count}" for kind, count in outcome.lost.items()),
            f"{outcome.worst_s:.1f} s",
            f"{max(outcome.whole_after_s):.1f} s",
        )
        for outcome in outcomes
    ]
    heads = (
        "ENGINE",
        "FAULT",
        "WORKERS x INSTANCES",
        "ROUNDS",
        "LOST",
        "AS",
        "WORST",
        "WHOLE AFTER",
    )
    print_table(heads, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engine", choices=("torchserve", "triton"), action="append")
    parser.add_argument("--workers", type=int, choices=(1, 2), action="append")
    parser.add_argument("--only", choices=FAULTS, action="append")
    parser.add_argument("--rounds", type=int, default=5, help="of each fault")
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    outcomes = [
        outcome
        for kind in options.engine or ("torchserve", "triton")
        for count in options.workers or (1, 2)
        for layout, faults in _layouts(count).items()
        if (selection := [fault for fault in faults if fault in (options.only or FAULTS)])
        for outcome in _measure(kind, *layout, selection, options.rounds)
    ]
    result = {
        "faults": [asdict(outcome) for outcome in outcomes],
        "load_average": os.getloadavg()[0],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(outcomes)
    lossless = [outcome for outcome in outcomes if outcome.workers * outcome.instances > 1]
    losses = sum(sum(outcome.lost.values()) for outcome in lossless)
    print_line("passed" if not losses else f"failed: {losses} lost with two workers")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
