"""Inputs of requests, kept where the operator turned that on for a model (`vlserve capture`).

    STATE_DIR/capture/MODEL/plan.json    what is kept, and how much of it
    STATE_DIR/capture/MODEL/total        the bytes that are taken
    STATE_DIR/capture/MODEL/DIGEST.json  one request: {"request_id", "at", "fields": name -> base64}

Files can be read by their owner alone. Whether a request is kept follows from its id, so that the
workers of both versions of a shadow choose the same ones, and each is kept once. A worker never
waits for another one, and what cannot be written is left out.
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

PLAN, TOTAL = "plan.json", "total"
TRIAL_ID = "trial-"
"""How the request ids of a person's trials begin; they are not kept."""
_LOOK_EVERY_S = 1.0
_TRIES = 5
_BETWEEN_TRIES_S = 0.001
_OWNER_ALONE = 0o600
_REQUEST_ID = b"x-request-id"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """``share``: of the requests, from 0 to 1; 0: none any more. ``days``: how long an input is
    kept. ``max_bytes``: of all inputs of the model; nothing more is kept beyond it."""

    share: float
    days: float
    max_bytes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote. ValueError, KeyError, TypeError."""
        told = json.loads(text)
        return cls(float(told["share"]), float(told["days"]), int(told["max_bytes"]))

    def takes(self, request_id: str) -> bool:
        """Return whether the request of this id is kept."""
        first = hashlib.sha256(b"share " + request_id.encode()).digest()[:6]
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
            request_id = _request_id(request)
            if request_id and not request_id.startswith(TRIAL_ID) and plan.takes(request_id):
                fields = {one["name"]: bytes(one["value"]) for one in request["parameters"]}
                keep_input(self._folder, request_id, fields, plan.max_bytes)
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


def keep_input(folder: Path, request_id: str, fields: Mapping[str, bytes], max_bytes: int) -> bool:
    """Write one input; return whether there was room for it, and no other one of its id."""
    kept = folder / name_of(request_id)
    if kept.exists():
        return False
    told = {
        "request_id": request_id,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fields": {name: base64.b64encode(value).decode() for name, value in fields.items()},
    }
    content = json.dumps(told).encode()
    with locked_total(folder) as total:
        if total is None or total.bytes + len(content) > max_bytes:
            return False
        total.bytes += len(content)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _OWNER_ALONE)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)
        part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
    return True


@dataclass
class Total:
    """The bytes that a model's inputs take."""

    bytes: int


@contextmanager
def locked_total(folder: Path, tries: int = _TRIES) -> Iterator[Total | None]:
    """Give the total, which is written when the body ends; None where others hold it for longer
    than ``tries`` milliseconds."""
    file = os.open(folder / TOTAL, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _OWNER_ALONE)
    try:
        if not _locked(file, tries):
            yield None
            return
        text = os.read(file, 20)
        total = Total(int(text) if text.isdigit() else 0)
        yield total
        os.pwrite(file, f"{total.bytes:020d}".encode(), 0)
    finally:
        os.close(file)  # the lock too


def _locked(file: int, tries: int) -> bool:
    for attempt in range(tries):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt + 1 < tries:
            time.sleep(_BETWEEN_TRIES_S)
    return False


def _request_id(request: Mapping[str, Any]) -> str:
    values = (one["value"] for one in request["headers"] if bytes(one["name"]) == _REQUEST_ID)
    return bytes(next(values, b"")).decode("utf-8", "replace")
