"""What is measured side by side: servers that are up, and how each is started."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.lib.own_stack import own_stack
from benchmarks.lib.photos import BODIES, Photo
from vlserve.control.domain import EngineKind
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.runtime.archive import verify_archive
from vlserve.stack.stopping import processes
from vlserve.testing.stack import RunningStack

UP_WITHIN_S = 120.0
TUNED = {"OMP_NUM_THREADS": "1"}
"""What our workers run with; the limit and the peers get it too, so that none is ahead by it."""
_LOG_LINES = 8


class SideFailed(Exception):
    """A server did not start, or does not answer; the message ends with its last words."""


@dataclass(frozen=True)
class Side:
    """One server that is up, or one way into it. ``processes`` finds all that it runs."""

    name: str
    url: str
    processes: Callable[[], Sequence[psutil.Process]]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = "form"

    def rest(self) -> None:
        """Stop its processes where they are: who waits for his turn must not take CPU."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.suspend()

    def wake(self) -> None:
        _resume(self.processes())

    def cpu_s(self) -> Counter[str]:
        """CPU seconds of its processes so far, by the program's name."""
        total: Counter[str] = Counter()
        for process in self.processes():
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                total[process.name()] += times.user + times.system  # type: ignore[assignment]
        return total


def first_answer(side: Side, photo: Photo) -> str:
    """What it says to ``photo``. SideFailed when that is no 200."""
    body = BODIES[side.body](photo)
    try:
        answer = httpx.post(
            side.url,
            content=body.body,
            headers={**body.headers, **side.headers},
            timeout=60.0,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise SideFailed(f"{side.name} does not answer: {error!r}") from error
    if answer.status_code != 200:
        raise SideFailed(f"{side.name} answers {answer.status_code}: {answer.text[:300]}")
    return answer.text


@dataclass(frozen=True)
class OurStack:
    """How a stack of ours serves. ``name``: what the table calls it, behind "ours"."""

    name: str = ""
    engine: EngineKind = "torchserve"
    lone_threads: int = 1


@contextmanager
def ours(
    folder: Path, archives: Sequence[Path], kind: OurStack = OurStack()
) -> Iterator[list[tuple[str, Side]]]:
    """Start our stack as `vlserve up` does, with every archive registered.

    Yields: Precision and way in: each archive through the gateway; the last one, on TorchServe,
        also at the engine itself, with its token (Triton's own protocol is the peer triton's).
    """
    with own_stack(folder, engine=kind.engine, lone_threads=kind.lone_threads) as stack:
        try:
            yield [
                side for archive in archives for side in _ours(stack, kind, archive, archives[-1])
            ]
        finally:
            _resume(processes(stack.settings))


def _ours(
    stack: RunningStack, kind: OurStack, archive: Path, last: Path
) -> Iterator[tuple[str, Side]]:
    manifest = verify_archive(archive)
    stack.control.register(archive)
    name, precision = our_name(kind, manifest.precision), manifest.precision
    path = f"/predictions/{manifest.model}/{manifest.version}"

    def stack_processes() -> Sequence[psutil.Process]:
        return processes(stack.settings)

    if archive != last:
        yield precision, Side(name, stack.settings.gateway_url + path, stack_processes)
        return
    if kind.engine == "torchserve":
        with closing(EngineGroup(endpoints(stack.settings), stack.settings.engine)) as engines:
            (instance,) = engines.instances()
        headers = {"Authorization": f"Bearer {instance.token}"}
        engine = f"http://{instance.host}:{instance.port}{path}"
        yield (
            precision,
            Side(f"{name}, no gateway", engine, stack_processes, headers, "handed-form"),
        )
    stack.control.release(manifest.model, manifest.version)
    url = f"{stack.settings.gateway_url}/predictions/{manifest.model}"
    yield precision, Side(name, url, stack_processes)


def our_name(kind: OurStack, precision: str) -> str:
    """What the table calls an archive of this precision on such a stack."""
    return " ".join(word for word in ("ours", precision, kind.name) if word)


@contextmanager
def started(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server in a session of its own, with a log in ``folder``; gone afterwards with all that it
    started."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    group = tree(process.pid)
    _resume(group)
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10.0)
    for child in group:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(group, timeout=10.0)
    process.wait()


def _resume(group: Sequence[psutil.Process]) -> None:
    """Those first that were started last: who watches others must not find them stopped."""
    for process in reversed(group):
        with suppress(psutil.Error):
            process.resume()


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until_up(
    side: Side, server: "subprocess.Popen[bytes]", photo: Photo, folder: Path
) -> Side:
    """It, once it answers. SideFailed when it ends first, or takes too long."""
    deadline_s = time.monotonic() + UP_WITHIN_S
    while True:
        try:
            first_answer(side, photo)
            return side
        except SideFailed as error:
            if server.poll() is not None or time.monotonic() > deadline_s:
                lines = (
                    (folder / "server.log")
                    .read_text(errors="replace", encoding="utf-8")
                    .splitlines()
                )
                words = " | ".join(line.strip() for line in lines[-_LOG_LINES:])
                raise SideFailed(f"{error}; its log ends: {words}") from error
        time.sleep(0.3)


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's, without what would change the Python of a server."""
    exclusions = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in exclusions} | changes
