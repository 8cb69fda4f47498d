"""Whether the versions of a rollout are healthy, and which start of each process serves them."""

import hashlib
import uuid
from collections.abc import Callable, Mapping

from vlserve.control.domain import Key
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.ports import Gateway

GATEWAY = "the gateway"


class StackHealth:
    """Answers from what the reconcile tick last saw. Thread-safe."""

    def __init__(
        self, traffic: Traffic, gateway: Gateway, unloadable: Callable[[], frozenset[Key]]
    ) -> None:
        """``unloadable``: returns the versions that could not be brought back into the engine."""
        self._traffic = traffic
        self._gateway = gateway
        self._unloadable = unloadable
        self._own_start = uuid.uuid4().hex

    def starts(self) -> Mapping[str, str]:
        """Return process -> which start of it answers, without those that do not answer."""
        starts = {"the control service": self._own_start}
        gateway = self._gateway.start()
        if gateway is not None:
            starts[GATEWAY] = gateway
        for instance in self._traffic.instances:
            token = hashlib.sha256(instance.token.encode()).hexdigest()
            starts[instance.name] = token[:16]
        return starts

    def healthy(self, key: Key) -> bool | None:
        """Return whether some instance has workers for the version; None while that is not known:
        the engine does not answer, or the version's workers are coming up."""
        holdings = self._traffic.held
        if any(holding[key].workers_ready > 0 for holding in holdings.values() if key in holding):
            return True
        return False if key in self._unloadable() else None

    def restoring(self, *keys: Key) -> bool | None:
        """Return whether an instance is still to get one of these versions back; None while the
        engine does not answer."""
        if not self._traffic.held:
            return None
        return any(key in instance.lacks for instance in self._traffic.instances for key in keys)
