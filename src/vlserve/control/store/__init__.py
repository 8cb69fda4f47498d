"""The ledger in SQLite: models, versions, rollouts, events."""
