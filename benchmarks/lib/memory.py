"""How much a running stack holds, over time: memory, open files, threads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from vlserve.settings import Settings
from vlserve.stack.stopping import processes

_KIB_IN_MIB = 1024
_OWN = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True)
class Held:
    """What all processes of a stack held at one moment. ``memory_mib``: see `own_memory_mib`."""

    memory_mib: float
    files: int
    threads: int


@dataclass
class Watch:
    """The moments seen so far, oldest first."""

    held: list[Held] = field(default_factory=list)


@contextmanager
def watching(settings: Settings, every_s: float) -> Iterator[Watch]:
    """Look at the processes of a stack, every ``every_s`` seconds, while the body runs."""
    watch, stop = Watch(), threading.Event()

    def look() -> None:
        while not stop.wait(every_s):
            watch.held.append(held_by(settings))

    thread = threading.Thread(target=look, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def held_by(settings: Settings) -> Held:
    """Return what the living processes of a stack hold now."""
    memory_mib, files, threads = 0.0, 0, 0
    for process in processes(settings):
        with suppress(psutil.Error, OSError):
            memory_mib += own_memory_mib(process.pid)
            files += process.num_fds()
            threads += process.num_threads()
    return Held(memory_mib, files, threads)


def own_memory_mib(pid: int) -> float:
    """Return what a process holds besides pages of files; of what it shares, its part.

    The pages of programs and libraries are shared by whatever runs from the same files, so that the
    part of a process (PSS) rises by tens of MiB as another stack on the machine ends.

    Raises:
        OSError: it has ended.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes_kib = [int(line.split()[1]) for line in lines if line.startswith(_OWN)]
    return sum(sizes_kib) / _KIB_IN_MIB


def growth(samples: Sequence[Held]) -> tuple[Held, Held] | None:
    """Return the medians of the second and of the last quarter: what came after the warm-up, and at
    the end. None where fewer than eight moments were seen."""
    quarter = len(samples) // 4
    if quarter < 2:
        return None
    return _median(samples[quarter : 2 * quarter]), _median(samples[-quarter:])


def _median(samples: Sequence[Held]) -> Held:
    return Held(
        median(sample.memory_mib for sample in samples),
        int(median(sample.files for sample in samples)),
        int(median(sample.threads for sample in samples)),
    )
