"""What each worker is at work on, where the others can read it when it is dead.

A request that kills its worker is sent again by the gateway, and would kill the next one. So each
worker notes the digests of its batch before it runs and clears them after. Who finds a dead
worker's note suspects what stands in it. A suspect is run alone, after its neighbours; if its
worker dies again, it alone stands in the note, and is refused for REFUSED_S.

All lies in one folder a version, which all workers of the stack share::

    <worker>.note               locked while its worker lives: digests of the batch that runs
    <digest>-<until>.suspect    it stood in a dead worker's note
    <digest>-<until>.refused    it killed a worker while it ran alone

``until`` is in seconds of the monotonic clock: a step of the other one changes nothing. These files
are empty, because a full disk takes a name for longer than a byte.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED_S = 600
"""Seconds that a request which killed two workers is refused, and that a suspect is one."""

NOTE_BYTES = 8192
"""Size of a note. It is written once in full, so that a full disk cannot keep a later one from
being written."""

OURS = b"x-vlserve-"
SUSPECT = ".suspect"
REFUSED = ".refused"

_DIGEST_BYTES = 16
_MTIME_STEP_NS = 2 * 10**9
"""Two changes of a folder that are further apart have different times, on any file system."""
_MOST = NOTE_BYTES // (2 * _DIGEST_BYTES + 1) - 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suspicions:
    """Digests of requests that stood in the note of a dead worker, once or while they ran alone."""

    suspects: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


def notes_folder(state_dir: Path, model: str, version: int) -> Path:
    """Return the folder of a version's notes in a stack."""
    return state_dir / "batches" / f"{model}-{version}"


def remove_notes(folder: Path) -> None:
    """Remove what stands in the folder of a version that was unloaded. Notes of workers that live
    stay: those of an instance that hangs, whose requests may end it yet."""
    with suppress(OSError):
        for file in list(folder.iterdir()):
            if not (file.name.endswith(".note") and _is_held(file)):
                file.unlink(missing_ok=True)
        folder.rmdir()


def _is_held(note: Path) -> bool:
    """Return whether the worker of a note lives."""
    try:
        with note.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def digest_of(request: Mapping[str, Any]) -> str:
    """Return the same for the same names and bytes, as TorchServe's worker reads a request, and the
    same words of the gateway about them."""
    total = hashlib.sha256()
    for entry in request["headers"]:
        if entry["name"].startswith(OURS):
            total.update(f"{len(entry['value'])} ".encode() + entry["name"] + entry["value"])
    for entry in request["parameters"]:
        total.update(f"{len(entry['name'])} {len(entry['value'])} {entry['name']}".encode())
        total.update(entry["value"])
    return total.hexdigest()[: 2 * _DIGEST_BYTES]


def is_of_a_client(request: Mapping[str, Any]) -> bool:
    """Return whether the gateway sent a request, which says so in its headers; the control
    service's own probes have none of them."""
    return any(header["name"].startswith(OURS) for header in request["headers"])


class BatchNotes:
    """One worker's note, and its view of the others'. What cannot be written is left out: a request
    is answered without a note too."""

    def __init__(self, folder: Path) -> None:
        """Begin a note in ``folder``, which is made where it is not there.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder = folder
        self._read_as_of: int | None = None  # the folder's mtime in ns
        self._marks: list[str] = []  # names of files of suspicions
        self._others: dict[str, int] = {}  # notes of other workers by their names, open
        folder.mkdir(parents=True, exist_ok=True)
        self._name = f"{os.getpid()}-{time.monotonic_ns()}.note"
        hidden = folder / f".{self._name}"
        self._note = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._note, fcntl.LOCK_EX)
        os.pwrite(self._note, bytes(NOTE_BYTES), 0)
        hidden.rename(folder / self._name)

    @contextmanager
    def at_work(self, digests: Sequence[str], *, alone: bool = False) -> Iterator[None]:
        """Note the digests while the body runs; ``alone``: of a suspect that is tried by itself."""
        lines = ["alone" if alone else "batch", *digests[:_MOST]]
        self._write("\n".join(lines).encode() + b"\0")
        try:
            yield
        finally:
            self._write(b"\0")
        if alone:
            for digest in digests:
                for file in self._folder.glob(f"{digest}-*{SUSPECT}"):
                    file.unlink(missing_ok=True)

    def look(self) -> Suspicions:
        """Return what stands in the folder: what dead workers were at work on becomes suspect or
        refused. While all live and nothing changes, it costs a call a worker."""
        try:
            self._read_folder()
            takeovers = [self._take_over(*note) for note in list(self._others.items())]
            if any(takeovers):
                self._read_folder()
            return Suspicions(self._marked(SUSPECT), self._marked(REFUSED))
        except OSError as error:
            logger.warning("%s: what dead workers left cannot be read: %s", self._folder, error)
            return Suspicions()

    def _read_folder(self) -> None:
        """Read the names in the folder where they may have changed."""
        now_ns, changed_ns = time.time_ns(), self._folder.stat().st_mtime_ns
        if changed_ns == self._read_as_of:
            return
        names = self._open_notes()
        self._marks = [name for name in names if name.endswith((SUSPECT, REFUSED))]
        self._read_as_of = changed_ns if now_ns - changed_ns > _MTIME_STEP_NS else None

    def _open_notes(self) -> list[str]:
        """Open the notes of other workers that are there; return the names in the folder."""
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        there = {name for name in names if self._is_of_another(name)}
        for name in self._others.keys() - there:
            os.close(self._others.pop(name))
        for name in there - self._others.keys():
            try:
                self._others[name] = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # another worker took it over: what it marked is there now
                return self._open_notes()
        return names

    def _write(self, content: bytes) -> None:
        with suppress(OSError):
            os.pwrite(self._note, content, 0)

    def _is_of_another(self, name: str) -> bool:
        return name.endswith(".note") and name != self._name and not name.startswith(".")

    def _take_over(self, name: str, note: int) -> bool:
        """Turn a dead worker's note into suspicions; False where its worker lives."""
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if os.fstat(note).st_nlink:  # else another worker was faster
                content = os.pread(note, NOTE_BYTES, 0).partition(b"\0")[0]
                kind, *digests = content.decode("ascii", "replace").split("\n")
                self._mark(digests, REFUSED if kind == "alone" else SUSPECT)
                (self._folder / name).unlink(missing_ok=True)
        finally:  # with the lock: what could not be marked is tried again, by whoever looks next
            os.close(self._others.pop(name))
            self._read_as_of = None
        return True

    def _mark(self, digests: Iterable[str], how: str) -> None:
        until = int(time.monotonic() + REFUSED_S)
        for digest in digests:
            logger.error("request %s killed its worker: %s for %d s", digest, how, REFUSED_S)
            (self._folder / f"{digest}-{until}{how}").touch()

    def _marked(self, how: str) -> frozenset[str]:
        return frozenset(
            name.partition("-")[0]
            for name in self._marks
            if name.endswith(how) and self._holds(name, name.removesuffix(how))
        )

    def _holds(self, name: str, stem: str) -> bool:
        """Return whether the time that stands in a file's name is still to come; the file goes
        else."""
        until = stem.rpartition("-")[2]
        left_s = int(until) - time.monotonic() if until.isdigit() else 0
        if 0 < left_s <= REFUSED_S:  # more is left of an earlier boot
            return True
        (self._folder / name).unlink(missing_ok=True)
        return False
