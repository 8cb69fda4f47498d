"""The ledger: what is registered, what is desired, and everything that happened.

A change is one transaction with its event.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from vlserve.control import caller
from vlserve.control.domain import (
    EngineKind,
    Event,
    ModelRecord,
    Signer,
    State,
    Trouble,
    VersionRecord,
)
from vlserve.control.store.database import LEDGER, Database
from vlserve.control.store.kept_archives import refuse_lost_ledger
from vlserve.control.store.manifests import Manifests
from vlserve.control.store.rows import (
    INSERT_VERSION,
    VERSION_COLUMNS,
    read_model,
    read_version,
    version_values,
)
from vlserve.control.store.sqlite_errors import damaged
from vlserve.control.transitions import TRANSITIONS, states_after
from vlserve.control.tuning import Tuning
from vlserve.errors import (
    ControlError,
    LedgerDamaged,
    ModelNotFound,
    TuningInvalid,
    VersionNotFound,
)
from vlserve.runtime.manifest import Manifest


class Ledger:
    """Thread-safe. Methods that change something take part in a `transaction` around them."""

    def __init__(self, store: Path, anew: bool = False) -> None:
        """Open or create the ledger of the model store ``store``.

        Args:
            anew: whether to create one though archives lie in the store.

        Raises:
            ControlError: another control service has it open, or a newer vlserve wrote it.
            LedgerLost: it knows no version, and archives lie in the store.
            LedgerDamaged: it cannot be read.
        """
        if not anew:
            refuse_lost_ledger(store)
        self.store = store
        self.database = Database(store)
        self._query, self._execute = self.database.query, self.database.execute
        self._last_models: list[ModelRecord] | None = None
        self._last_versions: list[VersionRecord] | None = None
        self._manifests = Manifests(self._query)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Keep all changes inside together, or none. Nests; the outermost one
        commits."""
        return self.database.transaction()

    def troubles(self) -> Iterator[Trouble]:
        """Yield what would keep a change from the ledger now."""
        try:
            self.database.check()
            self._read_models()
            self._read_versions()
        except ControlError as error:
            yield Trouble("ledger", str(error))

    def models(self) -> list[ModelRecord]:
        """Return every model that a version was ever registered for, by name. Once the ledger is
        damaged: as they were last read, so that what serves goes on, and can go back."""
        try:
            self._last_models = self._read_models()
        except LedgerDamaged:
            if self._last_models is None:
                raise
        return self._last_models

    def model(self, model: str) -> ModelRecord:
        try:
            rows = self._query("SELECT * FROM models WHERE model = ?", model)
            records = [self._model(row) for row in rows]
        except LedgerDamaged:
            records = [record for record in self._last_models or () if record.model == model]
        if not records:
            raise ModelNotFound(
                f"no model {model}: nothing was registered under this name"
                + _known(record.model for record in self.models())
            )
        return records[0]

    def versions(self, model: str | None = None) -> list[VersionRecord]:
        """Return every version, or those of one model, by number. Once the ledger is damaged: as
        they were last read."""
        try:
            if model is not None:
                return self._read_versions("WHERE model = ?", model)
            self._last_versions = self._read_versions()
        except LedgerDamaged:
            if self._last_versions is None:
                raise
        return [each for each in self._last_versions if model in (None, each.model)]

    def find(self, model: str, version: int) -> VersionRecord | None:
        try:
            rows = self._query(
                f"SELECT {VERSION_COLUMNS} FROM versions WHERE model = ? AND version = ?",
                model,
                version,
            )
            records = [self._version(row) for row in rows]
        except LedgerDamaged:
            records = [each for each in self.versions(model) if each.version == version]
        return records[0] if records else None

    def version(self, model: str, version: int) -> VersionRecord:
        record = self.find(model, version)
        if record is None:
            self.model(model)
            raise VersionNotFound(
                f"{model} has no version {version}"
                + _known(str(entry.version) for entry in self.versions(model))
            )
        return record

    def events(self, model: str, newest: int = -1) -> list[Event]:
        """Return what happened to a model, oldest first: the ``newest`` events, or all (-1)."""
        self.model(model)
        query = "SELECT * FROM events WHERE model = ? ORDER BY id DESC LIMIT ?"
        return [
            Event(row["at"], row["model"], row["version"], row["kind"], json.loads(row["detail"]))
            for row in reversed(self._query(query, model, newest))
        ]

    def registered_by(self, model: str, version: int) -> str:
        """Return who registered a version last; empty where the history does not say."""
        query = (
            "SELECT detail FROM events WHERE model = ? AND version = ? AND kind = 'registered'"
            " ORDER BY id DESC LIMIT 1"
        )
        details = [json.loads(row["detail"]) for row in self._query(query, model, version)]
        return str(details[0].get("by", "")) if details else ""

    def add(
        self,
        manifest: Manifest,
        archive: Path,
        sha256: str,
        tuning: Tuning | None = None,
        engine: EngineKind = "torchserve",
        by: str = "",
        signer: Signer | None = None,
    ) -> VersionRecord:
        """Register a new version, ``by`` somebody, signed by ``signer``. Replaces a failed one of
        this number that was never ready."""
        detail = {"tuned": str(tuning.serving)} if tuning else {}
        detail |= {"by": by} if by else {}
        detail |= {"signer": str(signer)} if signer else {}
        with self.transaction():
            self._execute("INSERT OR IGNORE INTO models (model) VALUES (?)", manifest.model)
            self._execute(
                "DELETE FROM versions WHERE model = ? AND version = ? AND state = ?"
                " AND NOT was_ready",
                manifest.model,
                manifest.version,
                State.FAILED,
            )
            path, state = archive.relative_to(self.store), State.REGISTERED
            values = version_values(manifest, path, sha256, state, now(), engine, tuning, signer)
            self._execute(INSERT_VERSION, *values)
            detail |= {"sha256": sha256, "engine": engine}
            self.record(manifest.model, manifest.version, "registered", **detail)
        return self.version(manifest.model, manifest.version)

    def enter(
        self, manifest: Manifest, archive: Path, sha256: str, state: State, engine: EngineKind
    ) -> None:
        """Enter a version that was ready under a ledger that is lost."""
        with self.transaction():
            self._execute("INSERT OR IGNORE INTO models (model) VALUES (?)", manifest.model)
            path = archive.relative_to(self.store)
            values = version_values(manifest, path, sha256, state, now(), engine)
            self._execute(INSERT_VERSION, *values)
            self._execute(
                "UPDATE versions SET was_ready = 1 WHERE model = ? AND version = ?",
                manifest.model,
                manifest.version,
            )
            self.record(manifest.model, manifest.version, "rebuilt", sha256=sha256)

    def assign(self, model: str, version: int, engine: EngineKind) -> VersionRecord:
        """Have a version run by ``engine`` from its next load on."""
        with self.transaction():
            self._execute(
                "UPDATE versions SET engine = ? WHERE model = ? AND version = ?",
                engine,
                model,
                version,
            )
            self.record(model, version, "assigned", engine=engine)
        return self.version(model, version)

    def tune(
        self, model: str, version: int, tuning: Tuning | None, reason: str = ""
    ) -> VersionRecord:
        """Set how a version is served from its next load on; None: as all are."""
        detail = {"tuned": str(tuning.serving)} if tuning else {}
        with self.transaction():
            self._execute(
                "UPDATE versions SET tuning = ? WHERE model = ? AND version = ?",
                tuning.model_dump_json() if tuning else None,
                model,
                version,
            )
            kind = "tuned" if tuning else "untuned"
            self.record(model, version, kind, **detail, **({"reason": reason} if reason else {}))
        return self.version(model, version)

    def sign(self, model: str, version: int, signer: Signer | None) -> VersionRecord:
        """Note whose key signed a version, as it was verified now."""
        with self.transaction():
            self._execute(
                "UPDATE versions SET signer = ? WHERE model = ? AND version = ?",
                signer and json.dumps(vars(signer)),
                model,
                version,
            )
            self.record(model, version, "signed", signer=signer and str(signer))
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
                now(),
                int(state is State.READY),
                model,
                version,
            )
            self.record(model, version, kind, **detail, **({"reason": reason} if reason else {}))
        return self.version(model, version)

    def release(self, model: str, version: int, weights: Mapping[int, int], **detail: Any) -> None:
        """Make ``version`` stable over the one before; ``weights`` are desired from now on."""
        with self.transaction():
            previous = self.model(model).stable
            self._execute(
                "INSERT INTO releases (model, version, at) VALUES (?, ?, ?)", model, version, now()
            )
            self._desire(model, weights, stable=version)
            self.record(
                model,
                version,
                "released",
                previous=previous,
                **detail,
                weights=_keys_as_text(weights),
            )

    def roll_back(self, model: str, version: int, weights: Mapping[int, int]) -> None:
        """Go back to ``version``, an earlier entry of the model's stack; those over it are
        undone."""
        with self.transaction():
            previous = self.model(model).stable
            self._execute(
                "UPDATE releases SET rolled_back_at = ?1"
                " WHERE model = ?2 AND rolled_back_at IS NULL AND id > (SELECT max(id) FROM"
                " releases WHERE model = ?2 AND version = ?3 AND rolled_back_at IS NULL)",
                now(),
                model,
                version,
            )
            self._desire(model, weights, stable=version)
            self.record(
                model, version, "rolled_back", previous=previous, weights=_keys_as_text(weights)
            )

    def weigh(
        self, model: str, version: int, weights: Mapping[int, int], kind: str, **detail: Any
    ) -> None:
        """Set other weights under the same stable version, with an event of ``kind`` on
        ``version``."""
        with self.transaction():
            stable = self.model(model).stable
            assert stable is not None, f"{model} has no stable version to share with"
            self._desire(model, weights, stable=stable)
            self.record(model, version, kind, **detail, weights=_keys_as_text(weights))

    def intend(self, model: str, weights: Mapping[int, int] | None) -> None:
        """Note what the gateway is about to be told, or (None) that it is known again."""
        text = None if weights is None else json.dumps(_keys_as_text(weights))
        self._execute("UPDATE models SET intended = ? WHERE model = ?", text, model)

    def undo(self, model: str, weights: Mapping[int, int]) -> None:
        """Record that the gateway left the weights that a control service had put it on before it
        died."""
        with self.transaction():
            self.intend(model, None)
            self.record(model, None, "interrupted", intended=_keys_as_text(weights))

    def record(self, model: str, version: int | None, kind: str, **detail: Any) -> None:
        """Append one event, with the name of the key by which it was asked for."""
        detail |= {"key": caller.key()} if caller.key() else {}
        with self.transaction():
            self._execute(
                "INSERT INTO events (at, model, version, kind, detail) VALUES (?, ?, ?, ?, ?)",
                now(),
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
                now(),
                model,
                version,
            )

    def _read_models(self) -> list[ModelRecord]:
        rows = self._query("SELECT * FROM models ORDER BY model")
        return [self._model(row) for row in rows]

    def _read_versions(self, which: str = "", *values: str) -> list[VersionRecord]:
        rows = self._query(
            f"SELECT {VERSION_COLUMNS} FROM versions {which} ORDER BY model, version", *values
        )
        return [self._version(row) for row in rows]

    def _model(self, row: sqlite3.Row) -> ModelRecord:
        with self._as_damage(row["model"]):
            return read_model(row, self._query)

    def _version(self, row: sqlite3.Row) -> VersionRecord:
        with self._as_damage(f"{row['model']} {row['version']}"):
            return read_version(row, self.store, self._manifests.of(row))

    @contextmanager
    def _as_damage(self, what: str) -> Iterator[None]:
        """Raise what cannot be read of a row as LedgerDamaged."""
        try:
            yield
        except (ValueError, TypeError, AttributeError, TuningInvalid) as error:
            why = f"what it says of {what} cannot be read: {error}"
            raise damaged(self.store / LEDGER, why) from error


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _keys_as_text(weights: Mapping[int, int]) -> dict[str, int]:
    return {str(version): share for version, share in weights.items()}


def _known(names: Iterator[str]) -> str:
    listing = ", ".join(names)
    return f" (there is {listing})" if listing else ""
