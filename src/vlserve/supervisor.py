"""The talk with the supervisord that runs a stack: what runs, what is to end, what hangs."""

import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

from vlserve.errors import StackError, SupervisorHangs
from vlserve.settings import Settings

ANSWER_TIMEOUT_S = 5.0
"""Of supervisord, which answers in milliseconds: one that takes longer is stopped or hangs."""

_RESTART_TIMEOUT_S = 60.0  # over every stopwaitsecs in serving_config/supervisor/


class Condition(Enum):
    """Of a supervisord: one that hangs is there, and takes no question."""

    ANSWERS = "answers"
    HANGS = "hangs"
    DOWN = "down"


@dataclass(frozen=True)
class Process:
    """One program of the stack, as supervisord sees it."""

    name: str
    state: str
    """RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL, …; SUSPENDED: it runs, and a signal
    (SIGSTOP) keeps it from going on."""
    pid: int | None
    started_at: int
    """Unix time of its latest start."""


class Supervisor:
    """The supervisord of one stack. Methods raise StackError when it does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._socket = settings.socket_dir / "supervisor.sock"

    def answers(self) -> bool:
        return self.condition() is Condition.ANSWERS

    def condition(self) -> Condition:
        try:
            self._call("getState")
        except SupervisorHangs:
            return Condition.HANGS
        except StackError:
            return Condition.DOWN
        return Condition.ANSWERS

    def processes(self) -> list[Process]:
        """Return every program, sorted by name."""
        return [
            Process(info["name"], _state(info), info["pid"] or None, info["start"])
            for info in self._call("getAllProcessInfo")
        ]

    def shutdown(self) -> None:
        """Ask it to stop every program and itself; returns at once."""
        self._call("shutdown")

    def restart(self, name: str) -> None:
        """Stop a program and start it again; returns once it runs."""
        self._call("stopProcess", name, timeout_s=_RESTART_TIMEOUT_S)
        self._call("startProcess", name, timeout_s=_RESTART_TIMEOUT_S)

    def kill(self, name: str) -> None:
        """Kill a program that hangs, with all that it started; supervisord starts it anew.

        SIGKILL at once: one that is stopped (SIGSTOP) would take no milder signal. StackError where
        no such program runs.
        """
        pid = next((process.pid for process in self.processes() if process.name == name), None)
        if pid is None:
            raise StackError(f"supervisord runs no {name} that could be killed")
        with suppress(ProcessLookupError):  # it ended by itself
            if os.getpgid(pid) != pid:
                raise StackError(f"{name} (pid {pid}) leads no group of processes of its own")
            os.killpg(pid, signal.SIGKILL)

    def _call(self, method: str, *arguments: str, timeout_s: float | None = None) -> Any:
        timeout_s = timeout_s or ANSWER_TIMEOUT_S
        transport = _Transport(self._socket, timeout_s)
        try:
            with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except TimeoutError as error:
            raise SupervisorHangs(
                f"supervisord answers nothing at {self._socket} within {timeout_s:g} s: it "
                "is suspended (`kill -CONT`) or hangs; `vlserve up` starts everything anew"
            ) from error
        except (OSError, HTTPException, Fault) as error:
            raise StackError(f"supervisord does not answer at {self._socket}: {error}") from error
        finally:
            transport.close()


def _state(info: Mapping[str, Any]) -> str:
    """Return a program's state; supervisord calls what is suspended running."""
    with suppress(psutil.Error):
        if info["pid"] and psutil.Process(info["pid"]).status() == psutil.STATUS_STOPPED:
            return "SUSPENDED"
    return str(info["statename"])


class _Transport(SupervisorTransport):  # type: ignore[misc]
    """supervisor's own, with a limit of time."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__(None, None, f"unix://{path}")
        self._get_connection = lambda: _Connection(str(path), timeout_s)


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.socketfile = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.socketfile)
