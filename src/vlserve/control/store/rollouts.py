"""Gray releases in the ledger."""

import sqlite3
from typing import Any

from vlserve.control.domain import Rollout, RolloutStatus
from vlserve.control.store.ledger import Ledger, now

_UNDER_WAY = "ended_at IS NULL"


class RolloutStore:
    """Thread-safe. Methods that change something take part in a ledger's `transaction`."""

    def __init__(self, ledger: Ledger) -> None:
        self._query = ledger.database.query
        self._execute = ledger.database.execute

    def start(
        self, model: str, candidate: int, stable: int, shadow_percent: int, progress: str
    ) -> Rollout:
        """A model has one release under way at most."""
        self._execute(
            "INSERT INTO gray_releases (model, candidate, stable, status, step, shadow_percent,"
            " started_at, progress) VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
            model,
            candidate,
            stable,
            RolloutStatus.RUNNING,
            shadow_percent,
            now(),
            progress,
        )
        started = self.under_way(model)
        assert started is not None
        return started

    def all_under_way(self) -> list[Rollout]:
        rows = self._query(f"SELECT * FROM gray_releases WHERE {_UNDER_WAY} ORDER BY id")
        return [_release(row) for row in rows]

    def under_way(self, model: str) -> Rollout | None:
        rows = self._query(f"SELECT * FROM gray_releases WHERE {_UNDER_WAY} AND model = ?", model)
        return _release(rows[0]) if rows else None

    def latest(self, model: str) -> Rollout | None:
        rows = self._query(
            "SELECT * FROM gray_releases WHERE model = ? ORDER BY id DESC LIMIT 1", model
        )
        return _release(rows[0]) if rows else None

    def kept(self) -> list[Rollout]:
        """Releases whose candidate was taken back and is to stay loaded for a while, or was until
        just now."""
        rows = self._query("SELECT * FROM gray_releases WHERE keep_until IS NOT NULL ORDER BY id")
        return [_release(row) for row in rows]

    def save(self, release_id: int, **columns: Any) -> None:
        """Set columns of one release."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self._execute(
            f"UPDATE gray_releases SET {names} WHERE id = ?", *columns.values(), release_id
        )

    def end(self, release_id: int, status: RolloutStatus, keep_until: float | None) -> None:
        self.save(release_id, status=status, ended_at=now(), keep_until=keep_until)


def _release(row: sqlite3.Row) -> Rollout:
    return Rollout(**{**dict(row), "status": RolloutStatus(row["status"])})
