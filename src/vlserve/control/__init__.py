"""The control plane: ledger, engine clients, gateway, reconcile, the user operations and their API."""
