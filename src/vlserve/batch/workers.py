"""Worker processes: orders to them, replies from them, and what to do when one dies or hangs."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import BatchError

KILL_AFTER_S = 2.0
MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Memory is kept between batches: a page that is new costs more than an image's read."""


@dataclass(frozen=True)
class Reply:
    """What a worker said, or that it ended: ``said`` is None then."""

    worker: int
    said: Mapping[str, Any] | None


@dataclass(frozen=True)
class Launch:
    """How workers are started. ``folder``: the unpacked archive; ``options``: see
    `vlserve_worker.batch`; ``locks``: descriptors that they inherit; ``log``: takes what they and
    the archive's code print."""

    folder: Path
    options: Mapping[str, Any]
    threads: int
    locks: tuple[int, ...]
    log: Path


class Worker:
    """One process."""

    def __init__(self, number: int, launch: Launch, replies: "queue.Queue[Reply]") -> None:
        self.number = number
        self.heard_at = time.monotonic()
        self._replies = replies
        reading, writing = os.pipe()
        options = json.dumps({**launch.options, "threads": launch.threads})
        command = [sys.executable, "-P", "-m", "vlserve_worker.batch", str(launch.folder)]
        with launch.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, options, str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(launch),
                pass_fds=(writing, *launch.locks),
                start_new_session=True,  # Ctrl-C is the driver's
            )
        os.close(writing)
        self._listener = threading.Thread(target=self._listen, args=(reading,), daemon=True)
        self._listener.start()

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def order(self, order: Mapping[str, Any]) -> None:
        """Have it answer a part. One that is dead says so by its reply."""
        self.heard_at = time.monotonic()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def stop(self, *, at_once: bool = False) -> None:
        """End the process; at once, or with the part that it is at."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if at_once:
            self._process.kill()
        try:
            self._process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, "rb") as replies:
            for line in replies:
                self._replies.put(Reply(self.number, json.loads(line)))
        self._process.wait()
        self._replies.put(Reply(self.number, None))


@contextmanager
def running(launch: Launch, count: int) -> Iterator["Crew"]:
    """Run ``count`` workers while the body runs; afterwards none is left."""
    crew = Crew(launch, count)
    try:
        yield crew
    except BaseException:
        crew.stop(at_once=True)
        raise
    crew.stop()


class Crew:
    """Workers that are replaced when they die."""

    def __init__(self, launch: Launch, count: int) -> None:
        self._launch = launch
        self._replies: queue.Queue[Reply] = queue.Queue()
        self._next = 0
        self.workers: dict[int, Worker] = {}
        for _ in range(count):
            self.start_one()

    def start_one(self) -> None:
        """Start one more worker; its reply ``ready`` says when it takes orders."""
        worker = Worker(self._next, self._launch, self._replies)
        self.workers[worker.number] = worker
        self._next += 1

    def replies(self, wait_s: float) -> Sequence[Reply]:
        """Wait up to ``wait_s`` for a reply and return all that are there."""
        try:
            replies = [self._replies.get(timeout=wait_s)]
        except queue.Empty:
            return ()
        while not self._replies.empty():
            replies.append(self._replies.get())
        for reply in replies:
            if reply.worker in self.workers:
                self.workers[reply.worker].heard_at = time.monotonic()
        return replies

    def remove(self, number: int) -> Worker:
        """Forget a worker that has ended, or kill it."""
        worker = self.workers.pop(number)
        worker.stop(at_once=True)
        return worker

    def stop(self, *, at_once: bool = False) -> None:
        """End every worker."""
        for worker in self.workers.values():
            worker.stop(at_once=at_once)
        self.workers.clear()

    def last_words(self) -> str:
        """Return the last line that a worker printed."""
        try:
            lines = self._launch.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise BatchError(f"{self._launch.log} cannot be read: {error.strerror}") from error
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _environment(launch: Launch) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    threads = str(launch.threads)
    return {
        **own,
        **MEMORY,
        "PYTHONPATH": str(launch.folder),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
