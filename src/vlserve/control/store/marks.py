"""What people said of pairs that differ, in the ledger."""

from vlserve.control.domain import Mark
from vlserve.control.store.ledger import Ledger

_COLUMNS = "model, request_id, stable, candidate, right_answer, label, marked_at, marked_by"


class MarkStore:
    """Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._query = ledger.database.query
        self._execute = ledger.database.execute

    def put(self, mark: Mark) -> None:
        """Keep a mark in the place of an earlier one of the same pair."""
        self._execute(
            f"INSERT OR REPLACE INTO marks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(mark.model, mark.request_id, mark.stable, mark.candidate),
            *(mark.right, mark.label, mark.marked_at, mark.marked_by),
        )

    def of(self, model: str) -> list[Mark]:
        """Return the marks of a model, oldest first."""
        rows = self._query(
            f"SELECT {_COLUMNS} FROM marks WHERE model = ? ORDER BY marked_at, rowid", model
        )
        return [Mark(*row) for row in rows]
