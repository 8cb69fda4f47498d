"""Trials: requests of a person at the console to one version.

They go straight to the engine. What counts requests and judges versions reads the gateway's logs,
which never tell of them.
"""

from vlserve.control.domain import ClientRequest, EngineAnswer, Instance, Key
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.ports import Engine
from vlserve.control.store.ledger import Ledger
from vlserve.errors import NotReady
from vlserve_worker.own_ids import trial_id


class Trials:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, engine: Engine, traffic: Traffic, timeout_s: float) -> None:
        """``timeout_s``: how long an answer is waited for."""
        self._ledger = ledger
        self._engine = engine
        self._traffic = traffic
        self._timeout_s = timeout_s

    def send(self, model: str, version: int, body: bytes, content_type: str) -> EngineAnswer:
        """Send a client's request to a version, on one of the instances that hold it.

        Raises:
            VersionNotFound: the model has no such version.
            NotReady: no instance holds it.
            EngineUnavailable: no answer comes.
        """
        record = self._ledger.version(model, version)
        request = ClientRequest(body, content_type, trial_id())
        return self._engine.send(self._holding(record.key), record.key, request, self._timeout_s)

    def _holding(self, key: Key) -> Instance:
        held = self._traffic.held
        for instance in self._traffic.instances:
            loaded = held.get(instance.name, {}).get(key)
            if loaded is not None and loaded.workers_ready:
                return instance
        model, version = key
        raise NotReady(f"{model} {version} is not loaded: no instance of the engine holds it now")
