"""`vlserve serve` as a process of its own, and clients that ask it until it takes no more."""

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.background_load import PAUSE_S, QUESTION
from support.running_stack import wait_until
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack.serving import own_settings
from vlserve.stack.stopping import processes
from vlserve.stack.supervisord import environment

LONGEST_START_S = 120.0
LONGEST_STOP_S = 120.0
REFUSED = "refused at connect"
"""Or reset before the server accepted the connection."""


@dataclass(frozen=True)
class Served:
    """One that runs. ``settings``: with the folders that it has for itself."""

    process: subprocess.Popen[bytes]
    settings: Settings
    log: Path

    def is_ready(self) -> bool:
        """Return whether it says so; fail where it has ended."""
        assert self.process.poll() is None, self.said()
        try:
            return httpx.get(
                f"{self.settings.gateway_url}/v2/health/ready", trust_env=False
            ).is_success
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, LONGEST_START_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(LONGEST_STOP_S)

    def said(self) -> str:
        """What it printed on stdout and stderr."""
        return self.log.read_text(encoding="utf-8")


@contextmanager
def serving(
    settings: Settings, place: Path, *options: str, program: Path | None = None
) -> Iterator[Served]:
    """Run `vlserve serve` while the body runs; afterwards no process of it is left.

    Args:
        program: vlserve of another installation.
    """
    log = settings.project_dir / "serve.log"
    variables = environment(settings) | {"OMP_NUM_THREADS": "1"}
    variables.pop(STACK_VARIABLE)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [
                str(program or Path(sys.executable).with_name("vlserve")),
                "serve",
                str(place),
                *options,
            ],
            env=variables,
            cwd=settings.project_dir,
            stdout=file,
            stderr=file,
        )
    server = Served(process, own_settings(settings), log)
    try:
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        assert not processes(server.settings), server.said()


@dataclass
class Load:
    """Clients that ask again and again until the first of their requests is refused at connect:
    half of them on kept connections, half on new ones."""

    url: str
    outcomes: list[str] = field(default_factory=list)
    """A status each, REFUSED, or how a request was lost."""

    def ask(self, kept: bool) -> None:
        while True:
            with httpx.Client(base_url=self.url, timeout=60.0, trust_env=False) as http:
                outcome, closes = self._ask_once(http, is_new=True)
                while kept and outcome == "200":
                    outcome, closes = self._ask_once(http, is_new=closes)
            if outcome == REFUSED:
                return

    def _ask_once(self, http: httpx.Client, is_new: bool) -> tuple[str, bool]:
        """Return what came of a request, and whether its answer closes the connection, so that the
        next one goes over a new one. ``is_new``: whether this one does."""
        time.sleep(PAUSE_S)
        closes = False
        try:
            answer = http.post("/predictions/tagger", json=QUESTION)
            outcome = str(answer.status_code)
            closes = answer.headers.get("connection") == "close"
        except httpx.ConnectError:
            outcome = REFUSED
        except httpx.TransportError as error:
            outcome = REFUSED if is_new and _is_unread(error) else repr(error)
        self.outcomes.append(outcome)
        return outcome, closes


def _is_unread(error: httpx.TransportError) -> bool:
    """Return whether a new connection ended as one does that a server took when it closed its
    listener: the kernel resets what was not accepted, Envoy closes what waits for its first bytes.
    Nobody has read their requests; one that was read has a line in the access log."""
    return f"[Errno {errno.ECONNRESET}]" in str(error) or "without sending" in str(error)


@contextmanager
def asking(url: str, clients: int = 6) -> Iterator[Load]:
    """Have clients ask until they are refused, which the end waits for."""
    load = Load(url)
    threads = [
        threading.Thread(target=load.ask, args=(number % 2 == 0,)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    yield load
    for thread in threads:
        thread.join()
