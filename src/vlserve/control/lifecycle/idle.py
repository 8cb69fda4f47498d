"""Whether a version may be unloaded. Pure."""

from collections.abc import Mapping

from vlserve.control.domain import Held, Key


def is_idle(key: Key, holdings: Held, in_flight: Mapping[Key, int]) -> bool:
    """Return whether no request waits for this version, at the gateway or in an engine's queue."""
    requests = sum(holding[key].pending for holding in holdings.values() if key in holding)
    return requests == 0 and in_flight.get(key) == 0
