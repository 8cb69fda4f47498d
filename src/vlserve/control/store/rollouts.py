"""Rollouts in the ledger. Their table is called gray_releases, as the first version wrote it."""

import sqlite3
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.store.ledger import Ledger, now
from vlserve.errors import LedgerDamaged

_UNDER_WAY = "ended_at IS NULL"


class RolloutStore:
    """Thread-safe. Methods that change something take part in a ledger's `transaction`."""

    def __init__(self, ledger: Ledger) -> None:
        self._query = ledger.database.query
        self._execute = ledger.database.execute
        self._last_under_way: list[Rollout] | None = None

    def start(
        self,
        model: str,
        candidate: int,
        stable: int,
        shadow_percent: int,
        state_json: str,
        salt: str,
    ) -> Rollout:
        """Add a rollout, ``salt`` that of its split. The table takes one per model that is under
        way."""
        self._execute(
            "INSERT INTO gray_releases (model, candidate, stable, status, step, shadow_percent,"
            " started_at, progress, salt) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?)",
            model,
            candidate,
            stable,
            RolloutStatus.RUNNING,
            shadow_percent,
            now(),
            state_json,
            salt,
        )
        rollout = self.under_way(model)
        assert rollout is not None
        return rollout

    def all_under_way(self) -> list[Rollout]:
        """Return every rollout under way. Once the ledger is damaged: as they were last read."""
        try:
            rows = self._query(f"SELECT * FROM gray_releases WHERE {_UNDER_WAY} ORDER BY id")
            self._last_under_way = [_rollout(row) for row in rows]
        except LedgerDamaged:
            if self._last_under_way is None:
                raise
        return self._last_under_way

    def under_way(self, model: str) -> Rollout | None:
        """Return the model's rollout under way, if there is one."""
        return next((each for each in self.all_under_way() if each.model == model), None)

    def latest(self, model: str) -> Rollout | None:
        """Return the model's newest rollout, under way or ended."""
        try:
            rows = self._query(
                "SELECT * FROM gray_releases WHERE model = ? ORDER BY id DESC LIMIT 1", model
            )
        except LedgerDamaged:
            return self.under_way(model)
        return _rollout(rows[0]) if rows else None

    def kept(self) -> list[Rollout]:
        """Return the ended rollouts whose candidate stays loaded for a while, or is due to go."""
        rows = self._query("SELECT * FROM gray_releases WHERE keep_until IS NOT NULL ORDER BY id")
        return [_rollout(row) for row in rows]

    def save_state(self, rollout_id: int, state_json: str) -> None:
        """Keep what the judge knows."""
        self._set(rollout_id, progress=state_json)

    def advance(self, rollout_id: int, step: int, state_json: str) -> None:
        """Keep the next step, which has no shadow."""
        self._set(rollout_id, step=step, shadow_percent=0, progress=state_json)

    def set_status(self, rollout_id: int, status: RolloutStatus) -> None:
        self._set(rollout_id, status=status)

    def end(self, rollout_id: int, status: RolloutStatus, keep_until: float | None) -> None:
        """End a rollout; its candidate stays loaded until ``keep_until`` (Unix time, s)."""
        self._set(rollout_id, status=status, ended_at=now(), keep_until=keep_until)

    def forget_kept(self, rollout_id: int) -> None:
        """Note that the candidate of an ended rollout needs no more care."""
        self._set(rollout_id, keep_until=None)

    def _set(self, rollout_id: int, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        self._execute(
            f"UPDATE gray_releases SET {names} WHERE id = ?", *columns.values(), rollout_id
        )


def _rollout(row: sqlite3.Row) -> Rollout:
    columns = dict(row)
    state_json = columns.pop("progress")
    status = RolloutStatus(columns.pop("status"))
    return Rollout(**columns, status=status, state_json=state_json)
