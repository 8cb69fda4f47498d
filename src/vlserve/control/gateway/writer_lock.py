"""Who may change the gateway's routes: one process at a time.

The control service is that one while it runs. Where it is down, a command that goes back is, for as
long as that takes: a service that comes up meanwhile waits, and then reads what was noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from vlserve.errors import GatewayTaken
from vlserve.lock_holders import holder_of, lock_within, open_lock
from vlserve.settings import Settings

WAIT_S = 30.0
"""How long a control service waits for a command, whose probe and gateway take 16 s at the most."""


@contextmanager
def gateway_writer(settings: Settings, timeout_s: float = WAIT_S) -> Iterator[None]:
    """Be the one who may change the gateway's routes while the body runs.

    Raises:
        GatewayTaken: Another process is, still after ``timeout_s``.
        OSError: The file of the lock cannot be opened, as by another user.
    """
    file = settings.state_dir / "gateway" / "writer.lock"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open_lock(file) as lock:
        if not lock_within(lock, timeout_s):
            raise GatewayTaken(
                f"{holder_of(file)} may change the gateway's routes, and nobody else until it "
                f"ends: it holds {file}"
            )
        yield
