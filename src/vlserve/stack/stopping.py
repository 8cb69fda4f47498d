"""The end of a stack: running requests first, then every process."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress

import psutil

from vlserve.control.engine.endpoints import endpoints
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.errors import StackError
from vlserve.running_settings import settings_file
from vlserve.settings import STACK_VARIABLE, Settings
from vlserve.stack import shared_memory
from vlserve.stack.starting import Progress
from vlserve.supervisor import Supervisor

STOP_TIMEOUT_S = 60.0  # over the sum of stopwaitsecs in serving_config/supervisor/
_POLL_S = 0.1


def stop(settings: Settings, progress: Progress) -> bool:
    """Let running requests finish and end every process; return whether anything was up.

    Raises:
        StackError: A process outlives even SIGKILL.
    """
    if Supervisor(settings).answers():
        _drain(settings, progress)
    return end(settings, progress)


def end(settings: Settings, progress: Progress) -> bool:
    """End every process, whatever requests it holds; return whether anything was up.

    Raises:
        StackError: A process outlives even SIGKILL.
    """
    supervisor = Supervisor(settings)
    was_up = supervisor.answers()
    if was_up:
        progress("stopping every process")
        with suppress(StackError):  # what it does not stop is stopped below
            supervisor.shutdown()
            # Left alone, supervisord looks once a second whether a program has ended.
            _wait_until_gone(settings, STOP_TIMEOUT_S, meanwhile=supervisor.answers)
    orphans = stop_processes(settings, progress)
    shared_memory.remove(shared_memory.stack_prefix(settings.state_dir))
    for endpoint in endpoints(settings):
        endpoint.pid_file.unlink(missing_ok=True)
    shutil.rmtree(settings.socket_dir, ignore_errors=True)
    settings_file(settings.state_dir).unlink(missing_ok=True)
    return was_up or orphans


def _drain(settings: Settings, progress: Progress) -> None:
    progress("waiting for running requests")
    with closing(EnvoyGateway(settings)) as gateway:
        gateway.drain(settings.gateway.timeout_s)


def processes(settings: Settings) -> list[psutil.Process]:
    """Return every living process of this stack but this one."""
    members = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(STACK_VARIABLE) == str(settings.state_dir)
            living = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if ours and living and process.pid != os.getpid():
            members.append(process)
    return members


def stop_processes(settings: Settings, progress: Progress) -> bool:
    """End what nothing supervises; return whether there was any.

    Raises:
        StackError: A process outlives even SIGKILL.
    """
    orphans = processes(settings)
    if not orphans:
        return False
    _drain(settings, progress)
    progress(f"stopping {len(orphans)} processes that nothing supervises")
    for process in orphans:
        _signal(process.terminate)
    _wait_until_gone(settings, 5.0)
    for process in processes(settings):
        _signal(process.kill)
    if not _wait_until_gone(settings, 5.0):
        names = ", ".join(f"{process.name()} ({process.pid})" for process in processes(settings))
        raise StackError(f"these processes of the stack do not stop: {names}")
    return True


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _wait_until_gone(
    settings: Settings, timeout_s: float, meanwhile: Callable[[], object] = lambda: None
) -> bool:
    deadline = time.monotonic() + timeout_s
    while processes(settings):
        if time.monotonic() > deadline:
            return False
        meanwhile()
        time.sleep(_POLL_S)
    return True
