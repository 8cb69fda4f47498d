"""A stack on free loopback ports, beside any other on this machine."""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from vlserve.control.client import ControlClient
from vlserve.settings import Settings
from vlserve.stack import stack
from vlserve.tls import trust_of

PORTS_OF_AN_INSTANCE = 10


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up. ``control`` talks to its control service, ``http`` to its gateway."""

    settings: Settings
    control: ControlClient
    http: httpx.Client

    @property
    def gateway_url(self) -> str:
        return self.settings.gateway_url


@contextmanager
def running_stack(
    settings: Settings, show: Callable[[str], None] = print
) -> Iterator[RunningStack]:
    """Run the stack of ``settings`` while the body runs; afterwards no process of it is left.

    Args:
        settings: Where it keeps its state and which ports it takes; see `with_free_ports`.
        show: Takes the lines of progress that `vlserve up` prints.

    Raises:
        StackError: A process does not start.
    """
    try:
        stack.up(settings, show)
        with (
            ControlClient.of(settings) as control,
            httpx.Client(
                base_url=settings.gateway_url,
                timeout=60.0,
                trust_env=False,
                verify=trust_of(settings.gateway_tls),
            ) as http,
        ):
            yield RunningStack(settings, control, http)
    finally:
        stack.down(settings, show)


def with_free_ports(settings: Settings) -> Settings:
    """Return ``settings`` with ports for every process that are free now."""
    first = free_ports(
        3 + PORTS_OF_AN_INSTANCE * settings.engine.instances * len(settings.engine.kinds)
    )
    own = settings.model_copy(
        update={
            "gateway": settings.gateway.model_copy(
                update={"port": first, "metrics_port": first + 1}
            ),
            "control": settings.control.model_copy(update={"port": first + 2}),
            "engine": settings.engine.model_copy(update={"base_port": first + 3}),
        }
    )
    return Settings.model_validate(own.model_dump())  # paths and URLs follow the changes


def free_ports(count: int) -> int:
    """Return the first of ``count`` free ports in a row, below those that the kernel hands out. No
    other process of this user that asks here gets one of them as long as this one lives."""
    while True:
        first = random.randrange(20000, 32000 - count)
        if _are_reserved(first, count) and all(map(_is_free, range(first, first + count))):
            return first


def _are_reserved(first: int, count: int) -> bool:
    """Lock a byte for each port of a file, for the life of this process; return whether no other
    process had one."""
    try:
        fcntl.lockf(_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except BlockingIOError:
        return False
    return True


@cache
def _ports_file() -> int:
    file = Path(tempfile.gettempdir()) / f"vlserve-ports-{os.getuid()}"
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
