"""Inputs of requests that the operator lets a model's workers keep: how much of them, for how long,
and what is kept of one request. vlserve_worker.capture writes them."""

import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from vlserve.control.store.ledger import Ledger
from vlserve.errors import CaptureUnwritable, VlserveError
from vlserve.runtime.body import BODY, bytes_of_base64
from vlserve_worker.capture import (
    PLAN,
    Plan,
    fields_of,
    locked_total,
    name_of,
    on_disk,
    read_plan,
    total_of,
)

FOLDER = "capture"
EXPIRE_EVERY_S = 600.0
LEFT_OVER_S = 60.0
"""After which a file that a worker did not finish is deleted."""
MOST_LOOKED_AT = 30
MOST_TEXT_CHARS = 10_000
_DAY_S = 24 * 3600
_PATIENT_TRIES = 2000
_SALT_BYTES = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureStatus:
    """What is kept of one model's requests. ``plan``: None where nothing ever was. ``bytes``: that
    its files take on the disk."""

    model: str
    plan: Plan | None
    inputs: int
    bytes: int


@dataclass(frozen=True)
class KeptInput:
    """One request's fields, as its client sent them."""

    fields: Mapping[str, bytes]

    @property
    def text(self) -> str:
        """The title, question or phrase; empty where it has none."""
        return self.fields.get("text", b"").decode("utf-8", "replace")

    @property
    def images(self) -> Mapping[str, bytes]:
        """Field -> the bytes of an image file."""
        return {name: value for name, value in self.fields.items() if name.startswith("image")}


@dataclass(frozen=True)
class InputSummary:
    """What a page shows of a kept input, without the bytes of its images."""

    text: str
    """Its first `MOST_TEXT_CHARS`."""
    text_chars: int
    images: Mapping[str, int]
    """Field -> bytes of the image file."""

    @classmethod
    def of(cls, kept_input: KeptInput) -> "InputSummary":
        text = kept_input.text
        sizes = {name: len(image) for name, image in kept_input.images.items()}
        return cls(text[:MOST_TEXT_CHARS], len(text), sizes)


class Captures:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, state_dir: Path) -> None:
        self._ledger = ledger
        self._folder = state_dir / FOLDER

    def start(self, model: str, plan: Plan) -> CaptureStatus:
        """Keep inputs of a model from now on, as ``plan`` says, with a salt of its own. It is in
        the model's history before it is in force.

        Raises:
            ModelNotFound: no such model.
            CaptureUnwritable: the plan cannot be written: all stays as it was.
        """
        self._ledger.model(model)
        detail = {"share": plan.share, "days": plan.days, "max_bytes": plan.max_bytes}
        self._ledger.record(model, None, "capture_started", **detail)
        with _told_of_disk(
            f"the plan of what is kept of {model} cannot be written: free some space"
        ):
            self._put(model, replace(plan, salt=secrets.token_hex(_SALT_BYTES)))
        return self.status(model)

    def stop(self, model: str) -> CaptureStatus:
        """Keep no more inputs; those that are kept stay until they are old. ModelNotFound.

        On a full disk the plan is deleted, and with it the word how long they stay: until a purge
        or another start.
        """
        self._ledger.model(model)
        plan = read_plan(self._of(model))
        if plan is not None and plan.share:
            try:
                self._put(model, replace(plan, share=0.0))
            except OSError as error:
                self._forget_plan(model)
                logger.warning(
                    "the plan of what is kept of %s was deleted, because it cannot be written "
                    "(%s): its inputs stay until `vlserve capture purge %s`",
                    *(model, error, model),
                )
            self._note(model, "capture_stopped")
        return self.status(model)

    def purge(self, model: str) -> CaptureStatus:
        """Delete all inputs of a model, and keep no more. It works on a full disk.

        Raises:
            ModelNotFound: no such model.
            CaptureUnwritable: something cannot be deleted.
        """
        before = self.status(model)
        self._forget_plan(model)
        folder = self._of(model)
        aside = self._folder / f".{model}.{secrets.token_hex(4)}"
        try:
            folder.rename(aside)  # so that no worker writes into it while it is being deleted
        except OSError:
            aside = folder
        shutil.rmtree(aside, ignore_errors=True)
        if before.plan is not None and before.plan.share:
            self._note(model, "capture_stopped")
        if aside.exists():
            raise CaptureUnwritable(
                f"not all inputs of {model} can be deleted: delete {aside} by hand"
            )
        if before.inputs:
            self._note(model, "capture_purged", inputs=before.inputs)
        return self.status(model)

    def status(self, model: str) -> CaptureStatus:
        """Return what is kept of a model's requests. ModelNotFound."""
        self._ledger.model(model)
        sizes = [size for _, size, _ in _inputs(self._of(model))]
        inputs, disk_bytes = sum(size > 0 for size in sizes), sum(map(on_disk, sizes))
        return CaptureStatus(model, read_plan(self._of(model)), inputs, disk_bytes)

    def input_of(self, model: str, request_id: str) -> KeptInput | None:
        """Return what was kept of a request; None where nothing was."""
        return read_input(self._folder.parent, model, request_id)

    def summary_of(self, model: str, request_id: str) -> InputSummary | None:
        """Return what a page shows of a request's input; None where nothing was kept."""
        kept_input = self.input_of(model, request_id)
        return None if kept_input is None else InputSummary.of(kept_input)

    def newest_summaries(self, model: str) -> list[InputSummary]:
        """Return what a page shows of the `MOST_LOOKED_AT` newest inputs, read one at a time."""
        inputs = (each for each in _inputs(self._of(model)) if each[1])
        files = nlargest(MOST_LOOKED_AT, inputs, key=lambda each: each[2])
        contents = (_read(file) for file, _, _ in files)
        return [InputSummary.of(each) for each in contents if each is not None]

    def expire(self) -> None:
        """Delete what is older than its model's plan says, and what was left over."""
        for folder in self._folder.glob("*/") if self._folder.is_dir() else ():
            if folder.name.startswith("."):  # a purge did not come to its end
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(OSError):  # a purge takes the folder away meanwhile
                _expire(folder, time.time())

    def _note(self, model: str, kind: str, **detail: Any) -> None:
        """Record an event of what is done already, so that the ledger cannot hinder it."""
        try:
            self._ledger.record(model, None, kind, **detail)
        except VlserveError as error:
            logger.warning("%s: %s is not in its history: %s", model, kind, error)

    def _forget_plan(self, model: str) -> None:
        with _told_of_disk(f"the plan of what is kept of {model} cannot be deleted"):
            (self._of(model) / PLAN).unlink(missing_ok=True)

    def _put(self, model: str, plan: Plan) -> None:
        folder = self._of(model)
        for each in (self._folder, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f".{PLAN}.part"
        try:
            part.touch(mode=0o600)
            part.write_text(plan.to_json(), encoding="utf-8")
            part.replace(folder / PLAN)
        finally:
            part.unlink(missing_ok=True)

    def _of(self, model: str) -> Path:
        return self._folder / model


class CaptureExpiry:
    """One thread deletes old inputs every `EXPIRE_EVERY_S`: ticks must not wait for many files."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture-expiry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no other round. One that is under way touches nothing that others close."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._captures.expire()
            except Exception:
                logger.exception("old inputs are not deleted")
            self._stopping.wait(EXPIRE_EVERY_S)


def read_input(state_dir: Path, model: str, request_id: str) -> KeptInput | None:
    """Return what the stack of ``state_dir`` kept of a request; None where nothing was."""
    return _read(state_dir / FOLDER / model / name_of(request_id))


def _read(file: Path) -> KeptInput | None:
    try:
        return KeptInput(_unfolded(fields_of(file)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _expire(folder: Path, now: float) -> None:
    """Delete old files, and put the sum of the others, with what workers took meanwhile."""
    plan, rest, before = read_plan(folder), 0, total_of(folder)
    longest_s = plan.days * _DAY_S if plan else math.inf  # `stop` on a full disk leaves none
    for file, size, at in _inputs(folder):
        if now - at > longest_s:
            file.unlink(missing_ok=True)
        else:
            rest += on_disk(size)
    for file in folder.glob(".*"):
        with suppress(FileNotFoundError):  # its worker ends with it just now
            if now - file.stat().st_mtime > LEFT_OVER_S:  # its worker was killed
                file.unlink()
    with locked_total(folder, _PATIENT_TRIES) as total:
        if total is not None:
            total.bytes = rest + max(0, total.bytes - before)


def _inputs(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield the file of each input with its size, 0 where its id came with different inputs, and
    the time at which it was written."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_input(entry.name):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield Path(entry.path), status.st_size, status.st_mtime


def _is_input(name: str) -> bool:
    return name.endswith(".json") and name != PLAN and not name.startswith(".")


@contextmanager
def _told_of_disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CaptureUnwritable(f"{what} ({error.strerror})") from error


def _unfolded(fields: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return the fields of a form as they are, and those of a JSON body each by itself, an image
    out of its base64."""
    if BODY not in fields:
        return fields
    body = json.loads(fields[BODY])
    return {
        name: _bytes_of(name, value) if isinstance(value, str) else json.dumps(value).encode()
        for name, value in body.items()
    }


def _bytes_of(name: str, value: str) -> bytes:
    """Return a text as UTF-8, and an image's base64 as its bytes."""
    return bytes_of_base64(value) if name.startswith("image") else value.encode()
