"""Rows of the ledger's tables as records, and a new version's row."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from vlserve.control.domain import EngineKind, ModelRecord, Shadow, Signer, State, VersionRecord
from vlserve.control.tuning import Tuning, parse_tuning
from vlserve.runtime.manifest import Manifest

VERSION_COLUMNS = (
    "model, version, archive, sha256, state, reason, was_ready, registered_at, changed_at, tuning,"
    " engine, signer"
)
"""All but the manifest, which is long."""
INSERT_VERSION = (
    "INSERT INTO versions (model, version, archive, sha256, manifest, state,"
    " registered_at, changed_at, tuning, engine, signer)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def read_model(row: sqlite3.Row, query: Callable[[str, object], list[sqlite3.Row]]) -> ModelRecord:
    """Return the model of a row, with what ``query`` finds of its releases and its rollout."""
    stack = query(
        "SELECT id, version FROM releases WHERE model = ?1 AND rolled_back_at IS NULL"
        " AND version NOT IN (SELECT version FROM versions WHERE model = ?1"
        " AND state = 'deleted') ORDER BY id",
        row["model"],
    )
    salt, step, shadow = str(stack[-1]["id"]) if stack else "", "", None
    for rollout in query(
        "SELECT id, candidate, step, shadow_percent, salt FROM gray_releases"
        " WHERE model = ? AND ended_at IS NULL",
        row["model"],
    ):
        salt, step = rollout["salt"], step_name(rollout["id"], rollout["step"])
        if rollout["shadow_percent"]:
            shadow = Shadow(rollout["candidate"], rollout["shadow_percent"])
    target = row["intended"]
    return ModelRecord(
        model=row["model"],
        weights=_weights(row["weights"]),
        stack=tuple(entry["version"] for entry in stack),
        salt=salt,
        step=step,
        shadow=shadow,
        intended=None if target is None else _weights(target),
    )


def version_values(
    manifest: Manifest,
    archive: Path,
    sha256: str,
    state: State,
    at: str,
    engine: EngineKind,
    tuning: Tuning | None = None,
    signer: Signer | None = None,
) -> tuple[object, ...]:
    """Return the values of `INSERT_VERSION` of a version that is registered at ``at``.

    Args:
        archive: its path below the model store.
    """
    return (
        manifest.model,
        manifest.version,
        str(archive),
        sha256,
        manifest.model_dump_json(),
        state,
        at,
        at,
        tuning.model_dump_json() if tuning else None,
        engine,
        signer and json.dumps(vars(signer)),
    )


def read_version(row: sqlite3.Row, store: Path, manifest: Manifest) -> VersionRecord:
    """Return the version of a row. ValueError, TuningInvalid: it does not hold what we write.

    Args:
        store: the model store that paths of archives are relative to.
    """
    return VersionRecord(
        model=row["model"],
        version=row["version"],
        archive=store / row["archive"],
        sha256=row["sha256"],
        manifest=manifest,
        state=State(row["state"]),
        reason=row["reason"],
        was_ready=bool(row["was_ready"]),
        registered_at=row["registered_at"],
        changed_at=row["changed_at"],
        tuning=None if row["tuning"] is None else parse_tuning(row["tuning"]),
        engine=_engine(row["engine"]),
        signer=None if row["signer"] is None else Signer(**json.loads(row["signer"])),
    )


def _engine(text: str) -> EngineKind:
    if text not in get_args(EngineKind):
        raise ValueError(f"no engine is called {text!r}")
    return cast(EngineKind, text)


def step_name(release_id: int, step: int) -> str:
    """Return how the gateway's log calls one step of one release."""
    return f"{release_id}/{step}"


def _weights(text: str) -> dict[int, int]:
    return {int(version): share for version, share in json.loads(text).items()}
