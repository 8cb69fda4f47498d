"""A stack of its own for a drill: free loopback ports, a folder that is gone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from vlserve.settings import EngineSettings, Settings
from vlserve.stack.supervisord import STACK_VARIABLE
from vlserve.testing import RunningStack, running_stack, with_free_ports


@contextmanager
def own_stack(folder: Path, instances: int = 1) -> Iterator[RunningStack]:
    """Run a stack while the body runs, with the settings that `vlserve up` takes by default, and so
    many engine instances."""
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        engine=EngineSettings(instances=instances),
    )
    with running_stack(with_free_ports(settings)) as running:
        yield running


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
