"""Who may write to an output's folder: one whole job, or its shards beside each other.

Locks are the kernel's (flock): workers inherit them, and they end with the last process. A shard
shares the folder's lock and has one of its own.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlserve.errors import BatchError
from vlserve_worker.batch_node import NODE_LOCK

LOCK = "lock"
"""The file of a folder's lock."""
WAIT_FOR_LOCK_S = 10.0
"""Workers of a driver that was killed end with the part that they are at."""


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th part, from part ``index`` on; by default all parts."""

    index: int = 0
    count: int = 1

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def has(self, part: int) -> bool:
        return part % self.count == self.index

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that ``I/N`` names, I from 0. ValueError where it names none."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"{text} is not I/N with I from 0 to N-1")
        return cls(int(match[1]), int(match[2]))


@contextmanager
def locked(state: Path, out: Path, shard: Shard) -> Iterator[tuple[int, ...]]:
    """Hold the locks of a shard in the folder ``state`` of ``out``; yields their descriptors.

    Raises:
        BatchError: Another job holds one, or the folder's job runs in another number of shards.
    """
    with ExitStack() as stack:

        def take(name: str, kind: int) -> int:
            descriptor = os.open(state / name, os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, descriptor)
            _take(descriptor, kind, out)
            return descriptor

        if shard.is_whole:
            job_lock = take(LOCK, fcntl.LOCK_EX)
            node_lock = take(NODE_LOCK, fcntl.LOCK_EX)  # a killed driver's nodes may still write
            fcntl.flock(node_lock, fcntl.LOCK_UN)
            for other in state.glob("shards-of-*"):
                other.unlink()
            yield (job_lock,)
            return
        job_lock = take(LOCK, fcntl.LOCK_SH)
        marks_lock = take("lock-marks", fcntl.LOCK_EX)  # of two first shards one is the first
        _refuse_other_counts(state, out, shard.count)
        (state / f"shards-of-{shard.count}").touch()
        fcntl.flock(marks_lock, fcntl.LOCK_UN)
        yield job_lock, take(f"lock-{shard.index}", fcntl.LOCK_EX)


def _refuse_other_counts(state: Path, out: Path, count: int) -> None:
    marks = {file.name for file in state.glob("shards-of-*")}
    if counts := marks - {f"shards-of-{count}"}:
        raise BatchError(
            f"{out} is of a job in another number of shards ({', '.join(sorted(counts))}): "
            "run it once without --shard before you change the number"
        )


def _take(descriptor: int, kind: int, out: Path) -> None:
    until = time.monotonic() + WAIT_FOR_LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise BatchError(
                    f"another job writes to {out}: wait for its end, or stop it"
                ) from None
            time.sleep(0.1)
        else:
            return
