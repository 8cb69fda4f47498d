"""The control service over HTTP."""
