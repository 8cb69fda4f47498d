"""Closed loop: so many kept connections, each asks again as soon as it has its answer.

One process of greenlets, with bodies made beforehand: it takes little of the machine that it shares
with the server (0.16 to 0.4 ms of CPU a request, most of it the kernel's, to copy 168 KB; threads
of http.client took about as much).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median, quantiles
from urllib.parse import urlsplit

import gevent
from gevent.event import Event
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from benchmarks.lib.photos import BODIES, Body, Photo

_TIMEOUT_S = 30.0
_UNANSWERED = (OSError, HTTPConnectionClosed, HTTPParseError)


@dataclass(frozen=True)
class LoadResult:
    """What clients saw in the measured time. ``failures``: status or error -> how often;
    the latencies are of 200 answers (NaN: none)."""

    connections: int
    seconds: float
    answered: int
    p50_ms: float
    p99_ms: float
    failures: Mapping[str, int]
    client_cpus: float
    """CPUs that this process took: 0.05 is a twentieth of one."""

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


@dataclass
class _Tally:
    """``phase``: put behind what fails outside the measured time."""

    phase: str = " (warm-up)"
    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, failure: str | None, latency_ms: float) -> None:
        if failure:
            self.failures[failure + self.phase] += 1
        elif not self.phase:
            self.latencies_ms.append(latency_ms)


def load(
    urls: Sequence[str],
    bodies: Sequence[Body],
    connections: int,
    seconds: float,
    warm_up_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
    on_begin: Callable[[], None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Ask in a closed loop, and return what was seen in the measured time. Afterwards the last
    requests are waited for, so that they burden nothing that is measured next.

    Args:
        urls: Each connection asks one of them.
        bodies: What is sent, in turn.
        connections: How many are kept.
        seconds: Measured time, after the warm-up.
        warm_up_s: Time before it, not measured.
        headers: Sent with every request, beside those of the body.
        on_begin: Called where the measured time begins.
        on_end: Called where it ends.
    """
    tally, stop = _Tally(), Event()

    def ask(number: int) -> None:
        address = urlsplit(urls[number % len(urls)])
        client = HTTPClient(str(address.hostname), address.port, network_timeout=_TIMEOUT_S)
        for body in islice(cycle(bodies), number, None):
            start_s = time.monotonic()
            failure = _ask(client, address.path, body.body, {**body.headers, **(headers or {})})
            tally.add(failure, (time.monotonic() - start_s) * 1000)
            if failure:
                gevent.sleep(0.01)  # a server that refuses at once must not fill the count
            if stop.is_set():
                break
        client.close()

    greenlets = [gevent.spawn(ask, number) for number in range(connections)]
    gevent.sleep(warm_up_s)
    on_begin()
    tally.phase, start_s, start_cpu_s = "", time.monotonic(), time.process_time()
    gevent.sleep(seconds)
    duration_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    tally.phase = " (afterwards)"
    on_end()
    stop.set()
    gevent.joinall(greenlets, raise_error=True)
    return load_result(tally.latencies_ms, tally.failures, connections, duration_s, cpu_s)


def load_result(
    latencies_ms: Sequence[float],
    failures: Mapping[str, int],
    connections: int,
    seconds: float,
    cpu_s: float,
) -> LoadResult:
    enough = len(latencies_ms) >= 100  # below that, a p99 would be invented
    p99_ms = quantiles(latencies_ms, n=100, method="inclusive")[98] if enough else math.nan
    p50_ms = median(latencies_ms) if latencies_ms else math.nan
    return LoadResult(
        connections, seconds, len(latencies_ms), p50_ms, p99_ms, dict(failures), cpu_s / seconds
    )


@dataclass(frozen=True)
class Job:
    """What `LoadProcess` is asked to do. ``body``: a name in BODIES; ``group``: which of the
    process's groups of photos is sent."""

    urls: Sequence[str]
    body: str
    headers: Mapping[str, str]
    connections: int
    seconds: float
    warm_up_s: float
    group: int = 0


class LoadProcess:
    """The clients in a process of their own, so that their CPU is theirs alone, with every body
    already made; at rest until it is asked."""

    def __init__(self, *groups: Sequence[Photo]) -> None:
        fresh = get_context("spawn")
        self._pipe, child_end = fresh.Pipe()
        self._process = fresh.Process(target=_do_jobs, args=(child_end, groups), daemon=True)
        self._process.start()
        child_end.close()

    def do(self, job: Job, on_begin: Callable[[], None], on_end: Callable[[], None]) -> LoadResult:
        """See `load`."""
        self._pipe.send(job)
        self._pipe.recv()
        on_begin()
        self._pipe.recv()
        on_end()
        result: LoadResult = self._pipe.recv()
        return result

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _do_jobs(pipe: "Connection[object, Job]", groups: Sequence[Sequence[Photo]]) -> None:
    bodies = {
        kind: [[make(photo) for photo in group] for group in groups]
        for kind, make in BODIES.items()
    }
    with suppress(EOFError):
        while True:
            job = pipe.recv()
            pipe.send(
                load(
                    job.urls,
                    bodies[job.body][job.group],
                    job.connections,
                    job.seconds,
                    job.warm_up_s,
                    job.headers,
                    on_begin=lambda: pipe.send("begun"),
                    on_end=lambda: pipe.send("ended"),
                )
            )


def _ask(client: HTTPClient, path: str, body: bytes, headers: Mapping[str, str]) -> str | None:
    """None: a 200."""
    try:
        response = client.request("POST", path, body, headers)
        response.read()
    except _UNANSWERED as error:
        return type(error).__name__
    return None if response.status_code == 200 else str(response.status_code)
