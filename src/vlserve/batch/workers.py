"""Worker processes: orders to them, replies from them, and what to do when one dies or hangs."""

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from vlserve.errors import BatchError
from vlserve_worker.batch_process import Launch, WorkerProcess, last_words


@dataclass(frozen=True)
class Reply:
    """What a worker said, or that it ended: ``message`` is None then."""

    worker: int
    message: Mapping[str, Any] | None


class CrewWorker(Protocol):
    """A worker on this machine, or on a node of a cluster. ``heard_at``: when it said something
    last, s."""

    heard_at: float

    @property
    def exit_code(self) -> int | None: ...

    def order(self, order: Mapping[str, Any]) -> None: ...


class Workers(Protocol):
    """Those who answer a job's parts: a `Crew`, or a `ClusterCrew`."""

    @property
    def workers(self) -> Mapping[int, CrewWorker]: ...

    def start_one(self) -> None: ...

    def replies(self, wait_s: float) -> Sequence[Reply]: ...

    def remove(self, number: int) -> CrewWorker: ...

    def last_words(self) -> str: ...

    def stop(self, *, at_once: bool = False) -> None: ...


class Worker(WorkerProcess):
    """One process of this machine."""

    def __init__(self, number: int, launch: Launch, replies: "queue.Queue[Reply]") -> None:
        self.number = number
        self.heard_at = time.monotonic()
        super().__init__(launch, lambda message: replies.put(Reply(number, message)))

    def order(self, order: Mapping[str, Any]) -> None:
        self.heard_at = time.monotonic()
        super().order(order)


W = TypeVar("W", bound=Workers)


@contextmanager
def working(workers: W) -> Iterator[W]:
    """Have ``workers`` work while the body runs; afterwards none of them is left."""
    try:
        yield workers
    except BaseException:
        workers.stop(at_once=True)
        raise
    workers.stop()


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
            return last_words(self._launch.log)
        except OSError as error:
            raise BatchError(f"{self._launch.log} cannot be read: {error.strerror}") from error
