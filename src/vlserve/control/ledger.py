"""The ledger: what is registered, what is desired, and everything that happened.

SQLite in model_store/, one control service at a time. Each thread at work has a connection of its
own, so that reading never waits for a change under way; a change is one transaction with its event.
"""

import fcntl
import json
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from vlserve.control.contract import Event, ModelRecord, State, VersionRecord
from vlserve.control.rollout import TRANSITIONS, states_after
from vlserve.errors import ControlError, ModelNotFound, VersionNotFound
from vlserve.runtime.manifest import Manifest

LEDGER = "ledger.sqlite"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE models (
    model TEXT PRIMARY KEY,
    weights TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE versions (
    model TEXT NOT NULL REFERENCES models (model),
    version INTEGER NOT NULL,
    archive TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    manifest TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    was_ready INTEGER NOT NULL DEFAULT 0,
    registered_at TEXT NOT NULL,
    changed_at TEXT NOT NULL,
    PRIMARY KEY (model, version)
) STRICT;
CREATE TABLE releases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    at TEXT NOT NULL,
    rolled_back_at TEXT,
    FOREIGN KEY (model, version) REFERENCES versions (model, version)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_model ON events (model, id);
CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

_VERSION = "model, version, archive, sha256, state, reason, was_ready, registered_at, changed_at"


class Ledger:
    """Thread-safe. Methods that change something take part in a `transaction` around them."""

    def __init__(self, store: Path) -> None:
        """Open or create the ledger of the model store ``store``; ControlError when another
        control service has it open, or a newer vlserve wrote it."""
        self.store = store
        store.mkdir(parents=True, exist_ok=True)
        self._owner = (store / f"{LEDGER}.lock").open("w")
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._owner.close()
            raise ControlError(
                f"another control service uses {store / LEDGER}: stop it (`vlserve down`), "
                "or give this stack a model_store of its own"
            ) from error
        self._threads = threading.local()
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._manifests: dict[str, Manifest] = {}  # by the archive's sha256; probes make them long
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closed = True  # what is under way may end, nothing may begin
        while self._idle:
            self._idle.pop().close()
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are kept together, or none. Nests; the outermost one commits."""
        with self._borrowed() as connection:
            if connection.in_transaction:
                yield
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    def models(self) -> list[ModelRecord]:
        """Every model that a version was ever registered for, by name."""
        return [self._model(row) for row in self._query("SELECT * FROM models ORDER BY model")]

    def model(self, model: str) -> ModelRecord:
        rows = self._query("SELECT * FROM models WHERE model = ?", model)
        if not rows:
            raise ModelNotFound(
                f"no model {model}: nothing was registered under this name"
                + _known(record.model for record in self.models())
            )
        return self._model(rows[0])

    def versions(self, model: str | None = None) -> list[VersionRecord]:
        """Every version, or those of one model, by number."""
        rows = self._query(
            f"SELECT {_VERSION} FROM versions WHERE ?1 IS NULL OR model = ?1"
            " ORDER BY model, version",
            model,
        )
        return [self._version(row) for row in rows]

    def find(self, model: str, version: int) -> VersionRecord | None:
        rows = self._query(
            f"SELECT {_VERSION} FROM versions WHERE model = ? AND version = ?", model, version
        )
        return self._version(rows[0]) if rows else None

    def version(self, model: str, version: int) -> VersionRecord:
        record = self.find(model, version)
        if record is None:
            self.model(model)
            raise VersionNotFound(
                f"{model} has no version {version}"
                + _known(str(entry.version) for entry in self.versions(model))
            )
        return record

    def events(self, model: str) -> list[Event]:
        """Everything that happened to a model, oldest first."""
        self.model(model)
        return [
            Event(row["at"], row["model"], row["version"], row["kind"], json.loads(row["detail"]))
            for row in self._query("SELECT * FROM events WHERE model = ? ORDER BY id", model)
        ]

    def add(self, manifest: Manifest, archive: Path, sha256: str) -> VersionRecord:
        """A new version, registered. Replaces a failed one of this number that was never ready."""
        model, version, now = manifest.model, manifest.version, _now()
        with self.transaction():
            self._execute("INSERT OR IGNORE INTO models (model) VALUES (?)", model)
            self._execute(
                "DELETE FROM versions WHERE model = ? AND version = ? AND state = ?"
                " AND NOT was_ready",
                model,
                version,
                State.FAILED,
            )
            self._execute(
                "INSERT INTO versions (model, version, archive, sha256, manifest, state,"
                " registered_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                model,
                version,
                str(archive.relative_to(self.store)),
                sha256,
                manifest.model_dump_json(),
                State.REGISTERED,
                now,
                now,
            )
            self.record(model, version, "registered", sha256=sha256)
        return self.version(model, version)

    def move(
        self, model: str, version: int, state: State, kind: str, reason: str = "", **detail: Any
    ) -> VersionRecord:
        """Move a version to ``state``, with an event of ``kind``. ControlError when it may not."""
        with self.transaction():
            before = self.version(model, version).state
            if state not in TRANSITIONS[before]:
                raise ControlError(f"{model} {version} is {before}: it cannot become {state}")
            self._execute(
                "UPDATE versions SET state = ?, reason = ?, changed_at = ?,"
                " was_ready = was_ready OR ? WHERE model = ? AND version = ?",
                state,
                reason,
                _now(),
                int(state is State.READY),
                model,
                version,
            )
            self.record(model, version, kind, **detail, **({"reason": reason} if reason else {}))
        return self.version(model, version)

    def release(self, model: str, version: int, weights: Mapping[int, int]) -> None:
        """``version`` becomes stable over the one before; ``weights`` are desired from now on."""
        with self.transaction():
            previous = self.model(model).stable
            self._execute(
                "INSERT INTO releases (model, version, at) VALUES (?, ?, ?)", model, version, _now()
            )
            self._desire(model, weights, stable=version)
            self.record(
                model, version, "released", previous=previous, weights=_keys_as_text(weights)
            )

    def roll_back(self, model: str, version: int, weights: Mapping[int, int]) -> None:
        """Back to ``version``, an earlier entry of the model's stack; those over it are undone."""
        with self.transaction():
            previous = self.model(model).stable
            self._execute(
                "UPDATE releases SET rolled_back_at = ?1"
                " WHERE model = ?2 AND rolled_back_at IS NULL AND id > (SELECT max(id) FROM"
                " releases WHERE model = ?2 AND version = ?3 AND rolled_back_at IS NULL)",
                _now(),
                model,
                version,
            )
            self._desire(model, weights, stable=version)
            self.record(
                model, version, "rolled_back", previous=previous, weights=_keys_as_text(weights)
            )

    def record(self, model: str, version: int | None, kind: str, **detail: Any) -> None:
        """Append one event."""
        with self.transaction():
            self._execute(
                "INSERT INTO events (at, model, version, kind, detail) VALUES (?, ?, ?, ?, ?)",
                _now(),
                model,
                version,
                kind,
                json.dumps(detail, ensure_ascii=False),
            )

    def _desire(self, model: str, weights: Mapping[int, int], stable: int) -> None:
        self._execute(
            "UPDATE models SET weights = ? WHERE model = ?",
            json.dumps(_keys_as_text(weights)),
            model,
        )
        states = {record.version: record.state for record in self.versions(model)}
        for version, state in states_after(states, weights, stable).items():
            if state not in TRANSITIONS[states[version]]:
                raise ControlError(
                    f"{model} {version} is {states[version]}: it cannot become {state}"
                )
            self._execute(
                "UPDATE versions SET state = ?, changed_at = ? WHERE model = ? AND version = ?",
                state,
                _now(),
                model,
                version,
            )

    def _model(self, row: sqlite3.Row) -> ModelRecord:
        stack = self._query(
            "SELECT id, version FROM releases WHERE model = ? AND rolled_back_at IS NULL"
            " ORDER BY id",
            row["model"],
        )
        return ModelRecord(
            model=row["model"],
            weights={int(version): share for version, share in json.loads(row["weights"]).items()},
            stack=tuple(entry["version"] for entry in stack),
            salt=str(stack[-1]["id"]) if stack else "",
        )

    def _version(self, row: sqlite3.Row) -> VersionRecord:
        return VersionRecord(
            model=row["model"],
            version=row["version"],
            archive=self.store / row["archive"],
            sha256=row["sha256"],
            manifest=self._manifest(row["model"], row["version"], row["sha256"]),
            state=State(row["state"]),
            reason=row["reason"],
            was_ready=bool(row["was_ready"]),
            registered_at=row["registered_at"],
            changed_at=row["changed_at"],
        )

    def _manifest(self, model: str, version: int, sha256: str) -> Manifest:
        if sha256 not in self._manifests:
            (row,) = self._query(
                "SELECT manifest FROM versions WHERE model = ? AND version = ?", model, version
            )
            self._manifests[sha256] = Manifest.model_validate_json(row["manifest"])
        return self._manifests[sha256]

    def _execute(self, statement: str, *values: object) -> None:
        with self._borrowed() as connection:
            connection.execute(statement, values)

    def _query(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._borrowed() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """The connection that this thread works with; one that is free, or a new one."""
        mine: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if mine is not None:
            yield mine
            return
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        self._threads.connection = connection
        try:
            yield connection
        finally:
            self._threads.connection = None
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise ControlError(f"{self.store / LEDGER} was closed: the control service stops")
        connection = sqlite3.connect(
            self.store / LEDGER, timeout=30, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a change that was answered is on disk
        return connection

    def _create(self) -> None:
        self._execute("PRAGMA journal_mode = WAL")
        found = self._query("PRAGMA user_version")[0][0]
        if found == 0:
            with self._borrowed() as connection:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
        elif found != SCHEMA_VERSION:
            raise ControlError(
                f"{self.store / LEDGER} has schema {found}, this vlserve reads {SCHEMA_VERSION}: "
                "use the vlserve that wrote it"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _keys_as_text(weights: Mapping[int, int]) -> dict[str, int]:
    return {str(version): share for version, share in weights.items()}


def _known(names: Iterator[str]) -> str:
    known = ", ".join(names)
    return f" (there is {known})" if known else ""
