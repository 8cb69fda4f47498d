"""A stack of its own for a benchmark, with the settings that `vlserve up` takes by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.control.domain import EngineKind
from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack.triton_program import why_triton_cannot_run
from vlserve.testing.stack import RunningStack, running_stack, with_free_ports

_LOAD_TIMEOUT_S = 180.0
"""Longer than by default: what else the machine does must not end a benchmark."""


@contextmanager
def own_stack(
    folder: Path,
    instances: int = 1,
    engine: EngineKind = "torchserve",
    workers: int | None = None,
    lone_threads: int = 1,
) -> Iterator[RunningStack]:
    """Run a stack on free loopback ports while the body runs. StackError where Triton is asked for
    and cannot run here: `vlserve up` would take TorchServe, and the figures would be that's.

    Args:
        folder: Where it keeps its state and its models.
        instances: How many engine instances it has.
        engine: Which server they are.
        workers: Of each version on each instance; None: as many as processors.
        lone_threads: On how many threads a worker computes while no other one is at work.
    """
    if engine != "torchserve" and (reason := why_triton_cannot_run()):
        raise StackError(f"Triton cannot run here: {reason}")
    options = {} if workers is None else {"workers": workers}
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        engine=EngineSettings(
            kind=engine,
            instances=instances,
            load_timeout_s=_LOAD_TIMEOUT_S,
            lone_threads=lone_threads,
            **options,
        ),
    )
    with running_stack(with_free_ports(settings)) as stack:
        yield stack
