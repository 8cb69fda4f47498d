"""Whether a version may be unloaded. Pure."""

from collections.abc import Mapping

from vlserve.control.domain import Held, Key


def is_idle(key: Key, held: Held, in_flight: Mapping[Key, int]) -> bool:
    """Return whether no request waits for this version, at the gateway or in an engine's queue."""
    pending = sum(holds[key].pending for holds in held.values() if key in holds)
    return pending == 0 and in_flight.get(key) == 0
