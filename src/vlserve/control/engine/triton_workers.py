"""The workers of Triton's versions, as the table of processes has them.

Triton 2.51 never replaces a worker ("stub") that died, and goes on calling its version ready: each
batch that it hands to a dead one waits a second and fails. So they are counted here.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

STUB = "triton_python_backend_stub"
"""Name of the program that runs a worker."""
_GROUP = "worker-"
_POLL_S = 0.1


@dataclass(frozen=True)
class Worker:
    """A worker that lives, and its number among those of its version."""

    process: psutil.Process
    number: int


def group_name(number: int) -> str:
    """Return the name of the instance group that the worker of this number is alone in."""
    return f"{_GROUP}{number}"


def living(server: psutil.Process) -> Mapping[Path, Sequence[Worker]]:
    """Return the workers of a server: folder of their code -> workers. One that is stopped
    (SIGSTOP) answers nothing, and is among them: see `is_stopped`."""
    workers: dict[Path, list[Worker]] = {}
    with suppress(psutil.Error):
        for child in server.children():
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    words = child.cmdline()
                    folder, number = _code_folder(words), _number(words)
                    if folder is not None and number is not None:
                        workers.setdefault(folder, []).append(Worker(child, number))
    return workers


def is_stopped(worker: Worker) -> bool:
    """Return whether a signal keeps the worker from going on."""
    try:
        return bool(worker.process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill these workers."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until_gone(
    processes: Iterable[psutil.Process], timeout_s: float
) -> Sequence[psutil.Process]:
    """Return those that are there still after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    rest = list(processes)
    while (rest := [each for each in rest if _is_there(each)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return rest


def _is_there(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _code_folder(words: Sequence[str]) -> Path | None:
    """Return the folder of the model.py that a worker runs, out of its command line; None for other
    processes."""
    if not words or not words[0].endswith(STUB):
        return None
    files = (Path(word) for word in words[1:] if word.endswith("/model.py"))
    return next((file.parent for file in files), None)


def _number(words: Sequence[str]) -> int | None:
    """Return a worker's number, out of its command line, which has the name of Triton's instance:
    that of the group, and more after a `_`."""
    names = (
        word.removeprefix(_GROUP).partition("_")[0] for word in words if word.startswith(_GROUP)
    )
    return next((int(name) for name in names if name.isdecimal()), None)
