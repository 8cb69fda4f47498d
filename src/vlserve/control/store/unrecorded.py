"""Changes back that are in force at the gateway and that the ledger does not know yet.

The way back works though the ledger takes no change. What was done is noted in a file whose space
was set aside, so that it outlives this process, and told to the ledger once that can be written.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlserve.control import caller
from vlserve.control.domain import ModelRecord, Rollout, RolloutStatus, Trouble
from vlserve.control.store.ledger import Ledger
from vlserve.control.store.rollouts import RolloutStore
from vlserve.errors import ControlError, LedgerDamaged, LedgerUnwritable

NOTE_BYTES = 64 * 1024
"""Of the file, whether it holds a note or not."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndOfRollout:
    """How a change back ends the rollout with this id.

    ``detail``: of the event. ``keep_until``: Unix time, s, until which the candidate stays loaded.
    ``state_json``: what the judge knew last; empty where nobody can read that.
    """

    id: int
    status: RolloutStatus
    keep_until: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    state_json: str = ""


@dataclass(frozen=True)
class ChangeBack:
    """All traffic of ``model`` goes from ``previous``, wholly or in part, back to ``version``, by a
    rollback or by the end of a rollout. ``key``: the name of the key by which it was asked for."""

    model: str
    version: int
    previous: int
    ends: EndOfRollout | None = None
    key: str = field(default_factory=caller.key)


_NOTE = TypeAdapter(dict[str, tuple[ChangeBack, ...]])


class Unrecorded:
    """Callers hold the lock of the traffic."""

    def __init__(self, ledger: Ledger, note: Path) -> None:
        self._ledger = ledger
        self._rollouts = RolloutStore(ledger)
        self._note = note
        self._changes = self._read()
        self._why = "the control service was stopped before"

    def record(self, change: ChangeBack) -> None:
        """Write a change into the ledger. Takes part in a transaction."""
        with caller.known_by(change.key), self._ledger.transaction():
            if change.ends is None:
                self._ledger.roll_back(change.model, change.version, {change.version: 100})
                return
            if change.ends.state_json:
                self._rollouts.save_state(change.ends.id, change.ends.state_json)
            self._rollouts.end(change.ends.id, change.ends.status, change.ends.keep_until)
            self._ledger.weigh(
                change.model,
                change.version,
                {change.version: 100},
                str(change.ends.status),
                previous=change.previous,
                **change.ends.detail,
            )

    def is_due(self, change: ChangeBack) -> bool:
        """Return whether the ledger still stands where the change was begun."""
        rollout = self._rollouts.under_way(change.model)
        if change.ends is not None:
            return rollout is not None and rollout.id == change.ends.id
        model = self._ledger.model(change.model)
        return (
            rollout is None and model.stable == change.previous and change.version in model.earlier
        )

    def add(self, change: ChangeBack, why: str) -> None:
        """Note a change that is about to be put in force, and why the ledger cannot be told. Where
        the file of the note cannot be written, this process knows the change alone."""
        self._append(change, why)
        self._keep()

    def add_for_good(self, change: ChangeBack, why: str) -> None:
        """As `add`, for a process that ends soon. OSError where the file cannot be written."""
        self._append(change, why)
        self._write()

    def _append(self, change: ChangeBack, why: str) -> None:
        self._changes[change.model] = (*self._of(change.model), change)
        self._why = why

    def drop_last(self, model: str) -> None:
        """Forget the last change of a model: it did not come into force."""
        earlier = self._of(model)[:-1]
        if earlier:
            self._changes[model] = earlier
        else:  # health reads along, and finds none that is empty
            self._changes.pop(model, None)
        self._keep()

    def tell(self) -> None:
        """Tell the ledger, as far as it can be written. A change that it has no place for, as after
        a backup was put in its place, is forgotten: it keeps no other model waiting."""
        for model, changes in list(self._changes.items()):
            try:
                self._tell_of(model, changes)
            except (LedgerUnwritable, LedgerDamaged) as error:
                self._why = str(error)
                return
            except ControlError as error:
                self._give_up(changes[-1], error)
            del self._changes[model]
            self._keep()

    def _tell_of(self, model: str, changes: Iterable[ChangeBack]) -> None:
        with self._ledger.transaction():
            for change in changes:
                self._tell(change)
            self._ledger.intend(model, None)

    def _give_up(self, change: ChangeBack, error: ControlError) -> None:
        logger.error("the ledger cannot be told of %s: %s", change, error)
        with suppress(ControlError):
            self._ledger.record(change.model, change.version, "not_recorded", reason=str(error))

    def _tell(self, change: ChangeBack) -> None:
        if self.is_due(change):
            self.record(change)
            self._ledger.record(change.model, change.version, "recorded_late")
        else:
            logger.warning("the ledger moved on, so it is not told of %s", change)

    def last_of(self, model: str) -> ChangeBack | None:
        """Return the last change that the ledger does not know of this model, if there is one."""
        return next(reversed(self._of(model)), None)

    def _of(self, model: str) -> tuple[ChangeBack, ...]:
        return self._changes.get(model, ())

    def in_force(self, record: ModelRecord) -> ModelRecord:
        """Return a model as the gateway has it."""
        for change in self._of(record.model):
            record = self._after(record, change)
        return record

    def _after(self, record: ModelRecord, change: ChangeBack) -> ModelRecord:
        stack = record.stack
        if change.ends is None and change.version in stack:
            newest = len(stack) - 1 - stack[::-1].index(change.version)
            stack = stack[: newest + 1]
        return replace(
            record,
            weights={change.version: 100},
            stack=stack,
            step="",
            shadow=None,
            intended=None,
        )

    def ended(self, rollout: Rollout) -> Rollout:
        """Return a rollout as it stands at the gateway."""
        for change in self._of(rollout.model):
            if change.ends is not None and change.ends.id == rollout.id:
                return replace(rollout, status=change.ends.status, shadow_percent=0)
        return rollout

    def troubles(self) -> Iterator[Trouble]:
        """Yield what the ledger does not know yet."""
        for change in [changes[-1] for changes in list(self._changes.values())]:
            yield Trouble(
                "ledger",
                f"{change.model} is back on {change.version}, but the ledger does not know it yet, "
                f"and is told as soon as it can be written: {self._why}",
            )

    def _read(self) -> dict[str, tuple[ChangeBack, ...]]:
        try:
            text = self._note.read_text(encoding="utf-8").strip() if self._note.exists() else ""
            return _NOTE.validate_json(text) if text else {}
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            logger.warning("%s cannot be read, so nothing is known of it: %s", self._note, error)
            return {}

    def _keep(self) -> None:
        try:
            self._write()
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._note, error)

    def _write(self) -> None:
        """Write over the bytes that are there, which needs no space. OSError."""
        notes = {
            model: tuple(
                replace(change, ends=change.ends and replace(change.ends, state_json=""))
                for change in changes
            )
            for model, changes in self._changes.items()
        }
        text = _NOTE.dump_json(notes) if notes else b""
        self.set_aside()
        with self._note.open("r+b") as file:
            file.write(text.ljust(NOTE_BYTES))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def set_aside(self) -> None:
        """Make the file of the note, where it is not there. Every tick calls it."""
        with suppress(OSError):
            if not self._note.exists():
                self._note.parent.mkdir(parents=True, exist_ok=True)
                self._note.write_bytes(b" " * NOTE_BYTES)
