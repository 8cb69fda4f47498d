"""The workers of Triton's versions, as the table of processes has them.

Triton 2.51 never replaces a worker ("stub") that died, and goes on calling its version ready: each
batch that it hands to a dead one waits a second and fails. So they are counted here.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

STUB = "triton_python_backend_stub"
"""Name of the program that runs a worker."""
_POLL_S = 0.1


def living(server: psutil.Process) -> dict[Path, list[psutil.Process]]:
    """Return the workers of a server: folder of their code -> processes. One that is stopped
    (SIGSTOP) answers nothing, and is among them: see `is_stopped`."""
    workers: dict[Path, list[psutil.Process]] = {}
    with suppress(psutil.Error):
        for child in server.children():
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and (folder := _code_folder(child)):
                    workers.setdefault(folder, []).append(child)
    return workers


def is_stopped(worker: psutil.Process) -> bool:
    """Return whether a signal keeps the worker from going on."""
    try:
        return bool(worker.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def kill(workers: Iterable[psutil.Process]) -> None:
    """Kill these workers."""
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def wait_until_gone(workers: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Return those that are there still after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    left = list(workers)
    while (left := [each for each in left if _is_there(each)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left


def _is_there(worker: psutil.Process) -> bool:
    try:
        return bool(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _code_folder(process: psutil.Process) -> Path | None:
    """Return the folder of the model.py that a worker runs; None for other processes."""
    words = process.cmdline()
    if not words or not words[0].endswith(STUB):
        return None
    files = (Path(word) for word in words[1:] if word.endswith("/model.py"))
    return next((file.parent for file in files), None)
