"""A stack beside the user's own, in a folder that is gone afterwards."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.control.domain import EngineKind
from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.settings_sections import GatewaySettings
from vlserve.stack.triton_program import why_triton_cannot_run
from vlserve.testing.stack import RunningStack, running_stack, with_free_ports


def on_one_engine(settings: Settings, engine: EngineKind | None) -> Settings:
    """Return the settings of a stack that runs ``engine`` alone; None: the first that it runs.

    Raises:
        StackError: Triton is asked for, and cannot run here.
    """
    kind = engine or settings.engine.kinds[0]
    if kind == "triton" and (reason := why_triton_cannot_run()):
        raise StackError(f"Triton cannot run here: {reason}")
    return settings.model_copy(update={"engine": settings.engine.on(kind)})


@contextmanager
def private_stack(like: Settings, show: Callable[[str], None]) -> Iterator[RunningStack]:
    """Run a stack while the body runs, open to this machine alone.

    Args:
        like: The settings that it shares, but for folders, ports, gateway, trust.mode, which is
            off, and the number of engine instances, of which it has one.
        show: Takes the lines of progress.

    Raises:
        StackError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="vlserve-own-") as folder:
        settings = like.model_copy(
            update={
                "state_dir": Path(folder) / "state",
                "model_store": Path(folder) / "model_store",
                "gateway": GatewaySettings(),
                "trust": like.trust.model_copy(update={"mode": "off"}),
                "engine": like.engine.model_copy(update={"instances": 1}),
            }
        )
        with running_stack(with_free_ports(settings), show) as stack:
            yield stack
