"""A stack on free loopback ports, beside any other on this machine."""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    """Return the first of ``count`` free ports in a row, below those that the kernel hands out."""
    while True:
        first = random.randrange(20000, 32000 - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
