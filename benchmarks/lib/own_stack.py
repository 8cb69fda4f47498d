"""A stack of its own for a benchmark, with the settings that `vlserve up` takes by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.settings import EngineSettings, Settings
from vlserve.testing.stack import RunningStack, running_stack, with_free_ports


@contextmanager
def own_stack(folder: Path, instances: int = 1) -> Iterator[RunningStack]:
    """Run a stack on free loopback ports while the body runs.

    Args:
        folder: Where it keeps its state and its models.
        instances: How many engine instances it has.
    """
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        engine=EngineSettings(instances=instances),
    )
    with running_stack(with_free_ports(settings)) as running:
        yield running
