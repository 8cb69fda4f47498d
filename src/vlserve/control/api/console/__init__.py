"""The console: pages of the control service that show what serves, what was decided and why."""
