"""Shared memory of Triton's instances: how it is named, and what removes it.

tritonserver and its workers share a file of /dev/shm for each worker. A server that unloads a
version removes its files; one that is killed, as a stop of the stack does, leaves them.
"""

import hashlib
import os
from pathlib import Path

FOLDER = Path("/dev/shm")


def stack_prefix(state_dir: Path) -> str:
    """Return how the names of all shared memory of a stack begin."""
    return f"vlserve-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]}-"


def instance_prefix(state_dir: Path, instance: str) -> str:
    """Return how the names of an instance's shared memory begin."""
    return f"{stack_prefix(state_dir)}{instance}-"


def remove(prefix: str) -> None:
    """Remove the shared memory whose name begins with ``prefix``; nobody may use it any more."""
    for region in FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
