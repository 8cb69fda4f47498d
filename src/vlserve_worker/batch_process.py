"""The process of one worker of an offline job: started, given orders, heard, ended.

Knows nothing of vlserve, so that nodes of a cluster start workers as this machine does.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL_AFTER_S = 2.0
MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Memory is kept between batches: a page that is new costs more than an image's read."""

Said = Mapping[str, Any]
Hear = Callable[[Said | None], None]


@dataclass(frozen=True)
class Launch:
    """How workers are started. ``folder``: the unpacked archive; ``options``: see
    `vlserve_worker.batch`; ``locks``: descriptors that they inherit; ``log``: takes what they and
    the archive's code print; ``program``: the folder that has this package, where it is not
    installed."""

    folder: Path
    options: Said
    threads: int
    locks: tuple[int, ...]
    log: Path
    program: Path | None = None


class WorkerProcess:
    """One process. ``hear`` gets its replies, and None when it has ended, from another thread."""

    def __init__(self, launch: Launch, hear: Hear) -> None:
        self._hear = hear
        read_end, write_end = os.pipe()
        options = json.dumps({**launch.options, "threads": launch.threads})
        command = [sys.executable, "-P", "-m", "vlserve_worker.batch", str(launch.folder)]
        with launch.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, options, str(write_end)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(launch),
                pass_fds=(write_end, *launch.locks),
                start_new_session=True,  # Ctrl-C is the driver's
            )
        os.close(write_end)
        self._listener = threading.Thread(target=self._listen, args=(read_end,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def order(self, order: Said) -> None:
        """Have it answer a part. One that is dead says so by its reply."""
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
                self._hear(json.loads(line))
        self._process.wait()
        self._hear(None)


def last_words(log: Path) -> str:
    """Return the last line that a worker printed. OSError where the log cannot be read."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _environment(launch: Launch) -> dict[str, str]:
    """Return the worker's environment: the archive's `vlserve` comes first, then, on a node, this
    package alone."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    threads = str(launch.threads)
    folders = [launch.folder, *([launch.program] if launch.program else [])]
    return {
        **own,
        **MEMORY,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
