"""Replaces the workers of one Triton instance that died.

Each worker is alone in an instance group of its own, and Triton 2.51 takes a change of groups alone
in place: those that stay serve meanwhile. So a dead worker is taken out of its version at once,
which gets no batch any more, and another one is started in its place, which takes seconds.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from vlserve.control import caller
from vlserve.control.domain import Key
from vlserve.control.engine import triton_workers
from vlserve.control.engine.triton_deaths import DeathWatch
from vlserve.control.engine.triton_repository import TritonRepository, WrittenVersion
from vlserve.control.engine.triton_workers import Worker
from vlserve.errors import ControlError

_AFTER_START_S, _AFTER_FAILURE_S = 1.0, 5.0
"""Until the next start of a version's workers: those that die in their start, or at once after it,
would keep the machine busy."""

logger = logging.getLogger(__name__)


class Mender:
    """Mends beside the ticks, but no version that is being loaded or removed. Thread-safe."""

    def __init__(
        self,
        name: str,
        repository: TritonRepository,
        workers: Callable[[Key], Sequence[Worker]],
        load: Callable[[Key], None],
        lock: Callable[[Key], threading.Lock],
    ) -> None:
        """
        Args:
            name: of the instance, for what is logged.
            workers: returns those of a version that live, also those that start or end.
            load: makes Triton take what the repository has of a version; returns once all is up.
            lock: of a version, for what may be done by one at a time.
        """
        self._name = name
        self._repository = repository
        self._workers = workers
        self._load = load
        self._lock = lock
        self._start_after: dict[Key, float] = {}  # a time of the monotonic clock
        self._starting: dict[Key, frozenset[int]] = {}  # numbers
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix=f"mend-{name}")
        self._deaths: DeathWatch | None = None

    def close(self) -> None:
        """A mend that is under way is given up: who starts next finds what it left."""
        self._closing.set()
        if self._deaths is not None:
            self._deaths.close()
        self._pool.shutdown(cancel_futures=True)

    def serving(
        self, key: Key, record: WrittenVersion, workers: Iterable[Worker]
    ) -> Sequence[Worker]:
        """Return those of a version's workers that answer requests: not those that start, those
        that were taken out and end, nor what a signal stopped."""
        numbers = set(record.numbers) - self._starting.get(key, frozenset())
        return [
            worker
            for worker in workers
            if worker.number in numbers and not triton_workers.is_stopped(worker)
        ]

    def watch(self, versions: Mapping[Key, Sequence[Worker]]) -> None:
        """Mend a version as soon as one of these workers dies."""
        if self._deaths is None:
            try:
                self._deaths = DeathWatch(self.mend, f"deaths-{self._name}")
            except OSError as error:
                logger.warning("%s: deaths are found at ticks alone: %s", self._name, error)
                return
        for key, workers in versions.items():
            self._deaths.watch(key, [worker.process.pid for worker in workers])

    def mend(self, key: Key) -> None:
        """Begin to mend a version, where something is to be mended. Raises nothing."""
        if not self._closing.is_set():
            self._pool.submit(self.mend_now, key)

    def restart(self, key: Key) -> bool:
        """Start the workers of a version at once, for a caller who holds its lock; return whether
        it lacked some.

        Raises:
            ControlError, TimeoutError, OSError: they do not come up.
        """
        self._start_after.pop(key, None)
        return self._start(key)

    def mend_now(self, key: Key) -> None:
        """Take the dead workers of a version out, and start others in their places."""
        lock = self._lock(key)
        if not lock.acquire(blocking=False):
            return  # it is being loaded, removed or mended
        try:
            with caller.working_for(self._closing.is_set):
                self._take_out(key)
                if self._start(key):
                    self._take_out(key)  # what died meanwhile
        except (ControlError, TimeoutError, OSError) as error:
            logger.error("%s: the workers of %s %s were not replaced: %s", self._name, *key, error)
        finally:
            lock.release()

    def _take_out(self, key: Key) -> None:
        """Leave the dead ones out of a version's configuration, where others live."""
        record, numbers = self._state(key)
        if record is None or not numbers or len(numbers) == len(record.numbers):
            return
        logger.warning("%s: a worker of %s %s died; it is taken out", self._name, *key)
        self._repository.put(*key, record.with_numbers(numbers))
        self._load(key)

    def _start(self, key: Key) -> bool:
        """Start the workers that a version lacks; return whether it was done."""
        record, numbers = self._state(key)
        if record is None or len(numbers) >= record.workers:
            return False
        if time.monotonic() < self._start_after.get(key, -math.inf):
            return False
        new_record = record.with_numbers(numbers).filled_up()
        self._starting[key] = frozenset(new_record.numbers) - frozenset(numbers)
        pause_s = _AFTER_FAILURE_S
        try:
            self._repository.put(*key, new_record)
            self._load(key)
            pause_s = _AFTER_START_S
        finally:
            self._starting.pop(key)
            self._start_after[key] = time.monotonic() + pause_s
        logger.info("%s: workers of %s %s were replaced", self._name, *key)
        return True

    def _state(self, key: Key) -> tuple[WrittenVersion | None, Sequence[int]]:
        """Return what is configured of a version, and the numbers of its workers that serve. What a
        signal stopped is killed: it would hold the batch that it has for ever."""
        record = self._repository.read(*key)
        if record is None:
            return None, ()
        workers = self._workers(key)
        servers = self.serving(key, record, workers)
        triton_workers.kill(each.process for each in workers if triton_workers.is_stopped(each))
        return record, sorted(worker.number for worker in servers)
