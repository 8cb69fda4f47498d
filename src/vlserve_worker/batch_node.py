"""A node of a cluster: what is checked of it at the start, and its workers.

Ray's actors import this from a folder of the job, because nodes have no vlserve.
"""

import fcntl
import io
import os
import queue
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlserve_worker.batch_parts import STATE
from vlserve_worker.batch_process import Launch, WorkerProcess, last_words
from vlserve_worker.storage import path_of, write_whole

NODE_LOCK = "lock-nodes"
"""In the output's folder: shared by all workers of nodes, who cannot inherit the driver's lock."""
_LOCK_WITHIN_S = 20.0


@dataclass(frozen=True)
class NodeJob:
    """``sha256``: of the archive; ``out``: the output; ``options``, ``threads``: as `Launch`."""

    sha256: str
    out: str
    options: Mapping[str, Any]
    threads: int


def check_node(
    packages: Sequence[str], sources: Sequence[str], out: str, token: str
) -> Sequence[str]:
    """Return what keeps a node from the job's work, a line each.

    Args:
        packages: That the archive's code imports.
        sources: Input files and folders.
        out: The output, in which the driver has written a file ``check-TOKEN``.
    """
    troubles: list[str] = []
    if sys.version_info[:2] != (3, 11):
        troubles.append(f"it has Python {sys.version_info[0]}.{sys.version_info[1]}, not 3.11")
    if missing_packages := [name for name in packages if find_spec(name) is None]:
        return [*troubles, f"it lacks the packages {', '.join(missing_packages)}"]
    for source in sources:
        try:
            if not path_of(source).exists():
                troubles.append(f"it does not see the input {source}")
        except OSError as error:
            troubles.append(f"it cannot read the input {source}: {error}")
    return [*troubles, *_output_troubles(out, token)]


def _output_troubles(out: str, token: str) -> Sequence[str]:
    state = path_of(out) / STATE
    try:
        if (state / f"check-{token}").read_bytes() != token.encode():
            return [f"it sees another output at {out}"]
        own = state / f"check-{token}-{os.uname().nodename}-{os.getpid()}"
        write_whole(own, b"")
        own.unlink(missing_ok=True)
    except FileNotFoundError:
        return [f"it does not see the output {out}: it must be on shared or object storage"]
    except OSError as error:
        return [f"it cannot write the output {out}: {error}"]
    return []


class NodeWorker:
    """One worker process of a node, below an actor of Ray."""

    def __init__(self, job: NodeJob, folder: str, archive: Callable[[], bytes]) -> None:
        """Start the process.

        Args:
            folder: Of this worker alone; has this package.
            archive: Fetches the archive's bytes, where no other worker of this node has unpacked
                them.
        """
        self._replies: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._scratch = Path(folder)
        self._unpacked = UnpackedArchive(job.sha256, archive)
        locks = () if (lock := _node_lock(job.out)) is None else (lock,)
        self._log = self._scratch / "worker.log"
        launch = Launch(
            self._unpacked.folder, job.options, job.threads, locks, self._log, self._scratch
        )
        self._process = WorkerProcess(launch, self._hear)
        for descriptor in locks:  # the process has its own
            os.close(descriptor)

    def order(self, order: Mapping[str, Any], lines: bytes | None) -> None:
        """Have it answer a part; ``lines``: its rows, where they are no Parquet."""
        if lines is not None:
            spool = self._scratch / "spool.jsonl"
            spool.write_bytes(lines)
            order = {**order, "spool": str(spool)}
        self._process.order(order)

    def replies(self, wait_s: float) -> Sequence[Mapping[str, Any]]:
        """Wait up to ``wait_s`` for a reply and return all that are there. The last of a process is
        ``{"ended": its exit code, "last_words": …}``."""
        replies = []
        with suppress(queue.Empty):
            replies.append(self._replies.get(timeout=wait_s))
            while True:
                replies.append(self._replies.get_nowait())
        return replies

    def pids(self) -> Sequence[int]:
        """Return the numbers of this process and of the worker's."""
        return os.getpid(), self._process.pid

    def stop(self, *, at_once: bool) -> None:
        """End the process, and remove what it leaves on the node."""
        self._process.stop(at_once=at_once)
        self._unpacked.leave()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _hear(self, message: Mapping[str, Any] | None) -> None:
        if message is not None:
            self._replies.put(message)
            return
        words = "it printed nothing"
        with suppress(OSError):
            words = last_words(self._log)
        self._replies.put({"ended": self._process.exit_code, "last_words": words})


class UnpackedArchive:
    """An archive that is unpacked once a node, and removed by the last worker that leaves it."""

    def __init__(self, digest: str, archive: Callable[[], bytes]) -> None:
        own = Path(tempfile.gettempdir()) / f"vlserve-nodes-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.getuid():
            raise PermissionError(f"{own} is of another user")
        self._lock_file, self.folder = own / f"{digest}.lock", own / digest
        self._lock = self._held(archive, digest)

    def leave(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock_file.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # others are at work
        finally:
            os.close(self._lock)

    def _held(self, archive: Callable[[], bytes], digest: str) -> int:
        """Return the descriptor of a lock that all workers of the node share, the archive being
        there."""
        while True:
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if self._is_current(lock) and self.folder.is_dir():
                    own, lock = lock, -1
                    return own
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._is_current(lock) and not self.folder.is_dir():
                    self._unpack(archive(), digest)
            finally:
                if lock >= 0:
                    os.close(lock)

    def _is_current(self, lock: int) -> bool:
        """Return whether the lock's file is still there: the last worker that leaves removes it."""
        try:
            return os.fstat(lock).st_ino == self._lock_file.stat().st_ino
        except FileNotFoundError:
            return False

    def _unpack(self, content: bytes, digest: str) -> None:
        if sha256(content).hexdigest() != digest:
            raise ValueError(f"the archive that arrived is not {digest}")
        beside = self.folder.with_name(f".{digest}")
        shutil.rmtree(beside, ignore_errors=True)  # of a worker that was killed at it
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            members.extractall(beside)
        beside.replace(self.folder)


def _node_lock(out: str) -> int | None:
    """Return the descriptor of a lock that says to later jobs that a worker still writes; None in
    an object storage."""
    folder = path_of(out) / STATE
    if not isinstance(folder, Path):
        return None
    lock = os.open(folder / NODE_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
