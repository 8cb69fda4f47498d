"""A stack of its own for a drill: free loopback ports, a folder that is gone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from vlserve.control.client import ControlClient
from vlserve.settings import ControlSettings, EngineSettings, GatewaySettings, Settings
from vlserve.stack import stack
from vlserve.stack.supervisord import STACK_VARIABLE
from vlserve.tuning.private_stack import free_ports


@dataclass(frozen=True)
class DrilledStack:
    """A stack that is up, and the client of its control service."""

    settings: Settings
    control: ControlClient


@contextmanager
def own_stack(folder: Path, instances: int = 1) -> Iterator[DrilledStack]:
    """Up while the body runs, with the settings that `vlserve up` takes by default, and so many
    engine instances."""
    first = free_ports(3 + 10 * instances)
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        gateway=GatewaySettings(port=first, admin_port=first + 1),
        control=ControlSettings(port=first + 2),
        engine=EngineSettings(base_port=first + 3, instances=instances),
    )
    try:
        stack.up(settings, print)
        with ControlClient(settings.control_url) as control:
            yield DrilledStack(settings, control)
    finally:
        stack.down(settings, print)


def processes(settings: Settings) -> list[psutil.Process]:
    """Every living process of a stack, also one that nothing supervises any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STACK_VARIABLE) == str(settings.state_dir):
                found.append(process)
        except psutil.Error:
            continue
    return found
