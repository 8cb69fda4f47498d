"""What a start of Triton begins with: no worker and no shared memory of an earlier one, an empty
repository, its backend's folder, and new tokens.

serving_config/triton/start.sh runs it, and reads three tokens: of inference, of management, and one
for what is closed, which stands nowhere.
"""

import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from vlserve.control.engine.triton_instance import write_tokens
from vlserve.control.engine.triton_repository import REPOSITORY
from vlserve.control.engine.triton_workers import STUB, kill, wait_until_gone
from vlserve.stack import shared_memory
from vlserve.stack.triton_program import triton_home

_GONE_S = 5.0


def bare(folder: Path, shm_prefix: str, temporary: Path) -> str:
    """Prepare an instance's folder; return its tokens, with a space between them.

    Args:
        shm_prefix: how the names of this instance's shared memory begin.
        temporary: its own folder for temporary files, which is emptied.
    """
    workers = _workers_of(folder)
    kill(workers)
    wait_until_gone(workers, _GONE_S)
    shared_memory.remove(shm_prefix)
    for name in (REPOSITORY, "store", "backends"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, parents=True)
    for name in (REPOSITORY, "store"):
        (folder / name).mkdir(parents=True)
    link_backend(folder, Path(os.environ.get("TRITON_HOME") or triton_home()))
    tokens = write_tokens(folder / "key_file.json")
    return f"{tokens['inference']} {tokens['management']} {secrets.token_hex(16)}"


def link_backend(folder: Path, home: Path) -> Path:
    """Make ``folder``'s backends/python of links to that of the Triton in ``home``, with the worker
    of this Python; return backends, which tritonserver is started with."""
    links = folder / "backends" / "python"
    links.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = home / "backends" / "python"
    for file in (
        backend / "libtriton_python.so",
        backend / "triton_python_backend_utils.py",
        home / "python_backend_stubs" / version / STUB,
    ):
        (links / file.name).symlink_to(file)
    return links.parent


def _workers_of(folder: Path) -> list[psutil.Process]:
    """Return the workers that run code of this instance's repository."""
    workers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if words and words[0].endswith(STUB) and process.cwd() == str(folder):
                workers.append(process)
    return workers


if __name__ == "__main__":
    print(bare(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
