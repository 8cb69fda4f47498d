"""The control plane: ledger, engine and gateway clients, reconcile, user operations, API."""
