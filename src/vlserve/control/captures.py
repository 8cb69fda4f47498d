"""Inputs of requests that the operator lets a model's workers keep: how much of them, for how long,
and what is kept of one request. vlserve_worker.capture writes them."""

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path

from vlserve.control.store.ledger import Ledger
from vlserve.runtime.body import BODY
from vlserve_worker.capture import PLAN, Plan, locked_total, name_of, read_plan

FOLDER = "capture"
EXPIRE_EVERY_S = 600.0
MOST_LOOKED_AT = 30
_DAY_S = 24 * 3600
_URL_SAFE = str.maketrans("-_", "+/")
_PATIENT_TRIES = 2000


@dataclass(frozen=True)
class CaptureStatus:
    """What is kept of one model's requests. ``plan``: None where nothing ever was."""

    model: str
    plan: Plan | None
    inputs: int
    bytes: int


@dataclass(frozen=True)
class KeptInput:
    """One request's fields, as its client sent them. ``at``: UTC, ISO 8601."""

    request_id: str
    at: str
    fields: Mapping[str, bytes]

    @property
    def text(self) -> str:
        """The title, question or phrase; empty where it has none."""
        return self.fields.get("text", b"").decode("utf-8", "replace")

    @property
    def images(self) -> Mapping[str, bytes]:
        """Field -> the bytes of an image file."""
        return {name: value for name, value in self.fields.items() if name.startswith("image")}


class Captures:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, state_dir: Path) -> None:
        self._ledger = ledger
        self._folder = state_dir / FOLDER
        self._expired_at = -EXPIRE_EVERY_S

    def start(self, model: str, plan: Plan) -> CaptureStatus:
        """Keep inputs of a model from now on, as ``plan`` says. ModelNotFound."""
        self._ledger.model(model)
        self._put(model, plan)
        self._ledger.record(model, None, "capture_started", **vars(plan))
        return self.status(model)

    def stop(self, model: str) -> CaptureStatus:
        """Keep no more inputs; those that are kept stay until they are old. ModelNotFound."""
        self._ledger.model(model)
        plan = read_plan(self._of(model))
        if plan is not None and plan.share:
            self._put(model, replace(plan, share=0.0))
            self._ledger.record(model, None, "capture_stopped")
        return self.status(model)

    def purge(self, model: str) -> CaptureStatus:
        """Delete all inputs of a model, and keep no more. ModelNotFound."""
        before = self.stop(model)
        shutil.rmtree(self._of(model), ignore_errors=True)
        if before.inputs:
            self._ledger.record(model, None, "capture_purged", inputs=before.inputs)
        return self.status(model)

    def status(self, model: str) -> CaptureStatus:
        """Return what is kept of a model's requests. ModelNotFound."""
        self._ledger.model(model)
        sizes = [size for _, size, _ in self._inputs(self._of(model))]
        return CaptureStatus(model, read_plan(self._of(model)), len(sizes), sum(sizes))

    def input_of(self, model: str, request_id: str) -> KeptInput | None:
        """Return what was kept of a request; None where nothing was."""
        return read_input(self._folder.parent, model, request_id)

    def newest_inputs(self, model: str) -> list[KeptInput]:
        """Return what was kept of the `MOST_LOOKED_AT` newest requests."""
        files = nlargest(MOST_LOOKED_AT, self._inputs(self._of(model)), key=lambda each: each[2])
        read = (_read(file) for file, _, _ in files)
        return [each for each in read if each is not None]

    def expire_if_due(self) -> None:
        """Every ten minutes, delete what is older than its model's plan says."""
        if time.monotonic() - self._expired_at < EXPIRE_EVERY_S:
            return
        self._expired_at = time.monotonic()
        for folder in self._folder.glob("*/") if self._folder.is_dir() else ():
            with suppress(OSError):  # a purge deletes the folder meanwhile
                self._expire(folder, time.time())

    def _expire(self, folder: Path, now: float) -> None:
        plan, left = read_plan(folder), 0
        longest_s = plan.days * _DAY_S if plan else 0.0
        with locked_total(folder, _PATIENT_TRIES) as total:
            for file, size, at in self._inputs(folder):
                if now - at > longest_s:
                    file.unlink(missing_ok=True)
                else:
                    left += size
            if total is not None:
                total.bytes = left

    def _inputs(self, folder: Path) -> Iterator[tuple[Path, int, float]]:
        """Yield each kept input with its size and the time at which it came."""
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and entry.name != PLAN:
                    with suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        yield Path(entry.path), found.st_size, found.st_mtime

    def _put(self, model: str, plan: Plan) -> None:
        folder = self._of(model)
        for each in (self._folder, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f".{PLAN}.part"
        part.write_text(plan.to_json(), encoding="utf-8")
        part.replace(folder / PLAN)

    def _of(self, model: str) -> Path:
        return self._folder / model


def read_input(state_dir: Path, model: str, request_id: str) -> KeptInput | None:
    """Return what the stack of ``state_dir`` kept of a request; None where nothing was."""
    return _read(state_dir / FOLDER / model / name_of(request_id))


def _read(file: Path) -> KeptInput | None:
    try:
        told = json.loads(file.read_bytes())
        fields = {name: base64.b64decode(value) for name, value in told["fields"].items()}
        return KeptInput(told["request_id"], told["at"], _unfolded(fields))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _unfolded(fields: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return the fields of a form as they are, and those of a JSON body each by itself, an image
    out of its base64."""
    if BODY not in fields:
        return fields
    told = json.loads(fields[BODY])
    return {
        name: _bytes_of(name, value) if isinstance(value, str) else json.dumps(value).encode()
        for name, value in told.items()
    }


def _bytes_of(name: str, value: str) -> bytes:
    """Return a text as UTF-8, and an image's base64, plain or as a data URI, as its bytes."""
    if not name.startswith("image"):
        return value.encode()
    return base64.b64decode(value.rpartition(",")[2].translate(_URL_SAFE))
