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
from vlserve_worker.batch_notes import notes_folder

MODEL = "echo"
CONNECTIONS = 4
BATCH_MS = 20.0
FAULTS = ("worker killed", "worker killed in a batch", "server killed", "worker stopped")
_SPACES = 4000
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
                began = time.monotonic()
                lost = _outcome(http, self._url, self._body(chance))
                now = time.monotonic()
                self.answers.append((now, now - began, lost))

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


def _workers(running: RunningStack) -> list[psutil.Process]:
    return [each for each in processes(running.settings) if program_of(each) == "worker"]


def _in_a_batch(running: RunningStack) -> psutil.Process:
    """Return a worker that has noted what it is at work on (vlserve_worker.batch_notes).

    Notes are named by their workers' process ids.
    """
    folder = notes_folder(running.settings.state_dir, MODEL, 1)
    living = {str(each.pid): each for each in _workers(running)}
    while True:
        for note in folder.glob("*.note"):
            with suppress(OSError):
                pid = note.stem.partition("-")[0]
                if note.read_bytes()[:1] not in (b"", b"\0") and pid in living:
                    return living[pid]


def _strike(running: RunningStack, fault: str) -> set[int]:
    """Do it; return the ids of the processes that are to be replaced."""
    if fault == "server killed":
        victim = next(each for each in processes(running.settings) if program_of(each) == "engine")
    elif fault == "worker killed in a batch":
        victim = _in_a_batch(running)
    else:
        victim = random.choice(_workers(running))
    victim.send_signal(signal.SIGSTOP if fault == "worker stopped" else signal.SIGKILL)
    return {victim.pid}


def _is_whole(running: RunningStack, engine: EngineGroup, replaced: set[int], workers: int) -> bool:
    if replaced & {each.pid for each in processes(running.settings)}:
        return False
    try:
        loaded = engine.loaded()
        healthy = running.control.health().status == "ok"
    except (ControlError, StackError):
        return False
    return (
        healthy
        and len(loaded) == running.settings.engine.instances
        and all(
            version.workers_ready == workers
            for versions in loaded.values()
            for version in versions.values()
        )
        and all(loaded.values())
    )


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WHOLE_WITHIN_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not whole after {_WHOLE_WITHIN_S:g} s")
        time.sleep(_POLL_S)


def _round(running: RunningStack, engine: EngineGroup, seen: Seen, bodies: Sequence[bytes]) -> None:
    _wait_until(lambda: _is_whole(running, engine, set(), seen.workers), "before")
    callers = Callers(f"{running.settings.gateway_url}/predictions/{MODEL}", bodies)
    with callers.asking():
        time.sleep(_CALM_S)
        struck = time.monotonic()
        replaced = _strike(running, seen.fault)
        _wait_until(lambda: _is_whole(running, engine, replaced, seen.workers), seen.fault)
        seen.whole_after_s.append(round(time.monotonic() - struck, 1))
        time.sleep(_AFTERWARDS_S)
    since = [each for each in callers.answers if each[0] >= struck]
    seen.rounds += 1
    seen.requests += len(since)
    seen.lost = dict(Counter(seen.lost) + Counter(lost for _, _, lost in since if lost))
    seen.worst_s = max(seen.worst_s, *(round(took, 2) for _, took, _ in since))


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
        bodies = [each.body for each in vary_probes(archive, 20)]
        with own_stack(Path(folder), instances, kind, workers) as running:
            running.control.register(archive)
            running.control.release(MODEL, 1)
            settings = running.settings
            with closing(EngineGroup(endpoints(settings), settings.engine)) as engine:
                for fault in faults:
                    seen = Seen(kind, fault, workers, instances)
                    for _ in range(rounds):
                        _round(running, engine, seen, bodies)
                    print_line(str(seen))
                    yield seen


def _print(found: Sequence[Seen]) -> None:
    rows = [
        (
            each.engine,
            each.fault,
            f"{each.workers} x {each.instances}",
            each.rounds,
            f"{sum(each.lost.values())} of {each.requests}",
            ", ".join(f"{kind}: {count}" for kind, count in each.lost.items()),
            f"{each.worst_s:.1f} s",
            f"{max(each.whole_after_s):.1f} s",
        )
        for each in found
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
    found = [
        seen
        for kind in options.engine or ("torchserve", "triton")
        for count in options.workers or (1, 2)
        for layout, faults in _layouts(count).items()
        if (chosen := [each for each in faults if each in (options.only or FAULTS)])
        for seen in _measure(kind, *layout, chosen, options.rounds)
    ]
    result = {"faults": [asdict(each) for each in found], "load_average": os.getloadavg()[0]}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(found)
    lossless = [each for each in found if each.workers * each.instances > 1]
    lost = sum(sum(each.lost.values()) for each in lossless)
    print_line("passed" if not lost else f"failed: {lost} lost with two workers")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
