"""The TCP ports of a stack: that no two are one, and that nobody else holds them."""

import errno
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

from vlserve.control.engine.endpoints import endpoints
from vlserve.errors import PortBusy, SettingsError, StackError
from vlserve.settings import Settings

_LAST_PORT = 65535
_DYING_S = 5.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Listening:
    """Where one server of the stack listens, and the setting that says so."""

    setting: str
    host: str
    port: int
    offset: int = 0
    """Of an engine's port: how far it is from the setting's value."""

    def __str__(self) -> str:
        offset = f" + {self.offset}" if self.offset else ""
        variable = f"VLSERVE_{self.setting.upper().replace('.', '__')}"
        return f"{self.port} ({self.setting}{offset}, {variable})"


def refuse_busy_ports(settings: Settings, with_control: bool = True) -> None:
    """Raise PortBusy, with who holds a port of the stack.

    A process that was killed a moment ago holds its ports a little longer, and is nobody's.
    """
    deadline = time.monotonic() + _DYING_S
    while busy := _busy_ports(ports(settings, with_control)):
        if any(busy.values()) or time.monotonic() > deadline:
            holders = "; port ".join(
                f"{port} is held by {holder or 'another process'}" for port, holder in busy.items()
            )
            raise PortBusy(f"port {holders}")
        time.sleep(_POLL_S)


def _busy_ports(listeners: Iterable[Listening]) -> dict[str, str | None]:
    """Return who listens at each port, by its setting; None where that process cannot be seen."""
    return {
        str(each): _holder(each.port)
        for each in listeners
        if _is_busy(each.host, each.port, each.setting)
    }


def ports(settings: Settings, with_control: bool = True) -> Iterator[Listening]:
    """Yield every TCP port of the stack, or of one without a control service."""
    gateway = settings.gateway
    yield Listening("gateway.port", gateway.host, gateway.port)
    yield Listening("gateway.metrics_port", gateway.metrics_host, gateway.metrics_port)
    if with_control:
        yield Listening("control.port", settings.control.host, settings.control.port)
    base = settings.engine.base_port
    for endpoint in endpoints(settings):
        for port in range(endpoint.inference_port, endpoint.inference_port + 5):
            yield Listening("engine.base_port", endpoint.host, port, port - base)


def refuse_equal_ports(settings: Settings, with_control: bool = True) -> None:
    """Raise SettingsError where two servers of the stack would listen on one port, or one on a
    port that does not exist."""
    before: list[Listening] = []
    for each in ports(settings, with_control):
        if each.port > _LAST_PORT:
            raise SettingsError(f"port {each} does not exist: the last one is {_LAST_PORT}")
        for other in before:
            if each.port == other.port and _overlap(each.host, other.host):
                raise SettingsError(
                    f"port {each} is that of {other.setting} as well: each server of the stack "
                    "needs a port of its own"
                )
        before.append(each)


def _overlap(host: str, other: str) -> bool:
    return host == other or bool({host, other} & {"0.0.0.0", "::", "localhost"})


def _is_busy(host: str, port: int, setting: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise StackError(f"{setting}: cannot listen on {host}:{port}: {error}") from error
    return False


def _holder(port: int) -> str | None:
    for connection in psutil.net_connections("tcp"):
        address, pid = connection.laddr, connection.pid
        if connection.status == psutil.CONN_LISTEN and address and address.port == port and pid:
            try:
                holder = psutil.Process(pid)
                return f"{holder.name()} (pid {pid})" if holder.cmdline() else None  # it is dying
            except psutil.Error:
                break
    return None
