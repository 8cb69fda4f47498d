"""Inputs of requests, kept where the operator turned that on for a model (`vlserve capture`).

    STATE_DIR/capture/MODEL/plan.json    what is kept, and how much of it
    STATE_DIR/capture/MODEL/total        the bytes that are taken
    STATE_DIR/capture/MODEL/DIGEST.json  one request: {"request_id", "at", "fields": name -> base64}

An empty file stands for a request whose id came with different inputs.

Files can be read by their owner alone. Whether a request is kept follows from its id and the plan's
salt, so that the workers of both versions of a shadow choose the same ones, and each is kept once,
but no client can tell which ones. A worker never waits for another one, and what cannot be written
is left out.
"""

import base64
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlserve_worker.bodies import REQUEST_ID, header_value
from vlserve_worker.own_ids import is_own

PLAN, TOTAL = "plan.json", "total"
MAX_INPUT_BYTES = 4 * 1024**2
"""Of all fields of one request; larger ones are not kept."""
LEAST_FREE_BYTES = 16 * 1024**2
"""Room that is left on the disk; on a small one, a twentieth of it. The stack calls a disk full
that has less."""
_BLOCK_BYTES = 4096
_LOOK_EVERY_S = 1.0
_BETWEEN_TRIES_S = 0.001
_DIGITS = 20
_OWNER_ALONE = 0o600

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """``share``: of the requests, from 0 to 1; 0: none any more. ``days``: how long an input is
    kept. ``max_bytes``: that all inputs of the model may take on the disk. ``salt``: random, so
    that no client can choose ids that are kept; plans of old have none."""

    share: float
    days: float
    max_bytes: int
    salt: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote. ValueError, KeyError, TypeError."""
        fields = json.loads(text)
        share, days, max_bytes = (fields[name] for name in ("share", "days", "max_bytes"))
        return cls(float(share), float(days), int(max_bytes), str(fields.get("salt", "")))

    def takes(self, request_id: str) -> bool:
        """Return whether the request of this id is kept."""
        first = hashlib.sha256(f"share {self.salt}{request_id}".encode()).digest()[:6]
        return int.from_bytes(first, "big") < self.share * 2**48


class Capture:
    """What one worker keeps of its model's requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked_at = -_LOOK_EVERY_S
        self._plan: Plan | None = None
        self._failing = False

    def keep(self, request: Mapping[str, Any]) -> None:
        """Keep the parts of a request, as `RequestFilter` has read it, if the plan takes it.

        Raises nothing: a request whose input cannot be kept is answered all the same.
        """
        plan = self._current_plan()
        if plan is None:
            return
        try:
            request_id = header_value(request, REQUEST_ID).decode("utf-8", "replace")
            if request_id and not is_own(request_id) and plan.takes(request_id):
                fields = {part["name"]: bytes(part["value"]) for part in request["parameters"]}
                keep_input(self._folder, request_id, fields, plan.max_bytes)
        except FileNotFoundError:
            self._plan = None  # a purge took the folder away
        except Exception as error:
            if not self._failing:
                logger.warning("inputs are not kept: %s", error)
            self._failing = True
        else:
            self._failing = False

    def _current_plan(self) -> Plan | None:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._plan = read_plan(self._folder)
        return self._plan


def read_plan(folder: Path) -> Plan | None:
    """Return what is kept of a model's requests; None where nothing ever was."""
    try:
        return Plan.from_json((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def name_of(request_id: str) -> str:
    """Return the name of the file that keeps the input of a request."""
    return f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}.json"


def on_disk(size: int) -> int:
    """Return the bytes that a file of ``size`` bytes takes, an empty one too."""
    return max(1, -(-size // _BLOCK_BYTES)) * _BLOCK_BYTES


def keep_input(folder: Path, request_id: str, fields: Mapping[str, bytes], max_bytes: int) -> bool:
    """Write one input; return whether it was written.

    It is not where it is larger than `MAX_INPUT_BYTES`, where there is no room, and where its id
    came before. If the id came with other fields, nobody can tell which of them a pair is of: what
    was kept is deleted, and the empty file that stays keeps the next one of this id out.
    """
    file = folder / name_of(request_id)
    if file.exists():
        _empty_unless_same(file, fields)
        return False
    if sum(map(len, fields.values())) > MAX_INPUT_BYTES:
        return False
    record = {
        "request_id": request_id,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fields": {name: base64.b64encode(value).decode() for name, value in fields.items()},
    }
    content = json.dumps(record).encode()
    size = on_disk(len(content))
    if not _leaves_room(folder, size) or not _take(folder, size, max_bytes):
        return False
    try:
        _write_once(file, content)
    except FileExistsError:  # the worker of the other version wrote it meanwhile
        _give_back(folder, size)
        _empty_unless_same(file, fields)
        return False
    return True


def fields_of(file: Path) -> Mapping[str, bytes]:
    """Return the fields that a file keeps. OSError; ValueError, KeyError or TypeError for a file
    that is empty or damaged."""
    fields = json.loads(file.read_bytes())["fields"]
    return {name: base64.b64decode(value) for name, value in fields.items()}


def _write_once(file: Path, content: bytes) -> None:
    """Write a file whole. FileExistsError where it is there already."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _OWNER_ALONE
        )
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        file.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)


def _empty_unless_same(file: Path, fields: Mapping[str, bytes]) -> None:
    size = file.stat().st_size
    if not size:
        return
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        if fields_of(file) == fields:
            return
    os.truncate(file, 0)
    _give_back(file.parent, on_disk(size) - on_disk(0))


def _leaves_room(folder: Path, size: int) -> bool:
    disk = os.statvfs(folder)
    least = min(LEAST_FREE_BYTES, disk.f_blocks * disk.f_frsize // 20)
    return disk.f_bavail * disk.f_frsize - size >= least


def _take(folder: Path, size: int, max_bytes: int) -> bool:
    with locked_total(folder) as total:
        if total is None or total.bytes + size > max_bytes:
            return False
        total.bytes += size
        return True


def _give_back(folder: Path, size: int) -> None:
    """Lower the total, unless another worker holds it: the control service counts anew."""
    with locked_total(folder) as total:
        if total is not None:
            total.bytes = max(0, total.bytes - size)


@dataclass
class Total:
    """The bytes that a model's inputs take on the disk."""

    bytes: int


@contextmanager
def locked_total(folder: Path, tries: int = 1) -> Iterator[Total | None]:
    """Give the total, which is written when the body ends; None where others hold it at each of
    ``tries``, a millisecond apart."""
    file = os.open(folder / TOTAL, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _OWNER_ALONE)
    try:
        if not _locked(file, tries):
            yield None
            return
        total = Total(_number(os.read(file, _DIGITS)))
        yield total
        os.pwrite(file, f"{total.bytes:0{_DIGITS}d}".encode(), 0)
    finally:
        os.close(file)  # the lock too


def total_of(folder: Path) -> int:
    """Return the total without a lock; 0 where none was written."""
    try:
        return _number((folder / TOTAL).read_bytes())
    except OSError:
        return 0


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else 0


def _locked(file: int, tries: int) -> bool:
    for attempt in range(tries):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt + 1 < tries:
            time.sleep(_BETWEEN_TRIES_S)
    return False
