"""A stack beside the user's own: free loopback ports, a folder of its own, gone afterwards."""

import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlserve.settings import GatewaySettings, Settings
from vlserve.stack import stack


@contextmanager
def private_stack(like: Settings, show: Callable[[str], None]) -> Iterator[Settings]:
    """Up while the body runs, with ``like``'s engine settings, one instance, open to this machine
    alone. StackError when it does not start."""
    first = free_ports(8)
    with tempfile.TemporaryDirectory(prefix="vlserve-tune-") as folder:
        settings = like.model_copy(
            update={
                "state_dir": Path(folder) / "state",
                "model_store": Path(folder) / "model_store",
                "gateway": GatewaySettings(port=first, admin_port=first + 1),
                "control": like.control.model_copy(update={"port": first + 2}),
                "engine": like.engine.model_copy(update={"base_port": first + 3, "instances": 1}),
            }
        )
        settings = Settings.model_validate(settings.model_dump())  # paths and urls of its own
        try:
            stack.up(settings, show)
            yield settings
        finally:
            stack.down(settings, show)


def free_ports(count: int) -> int:
    """The first of ``count`` free ports in a row, below those that the kernel hands out itself."""
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
