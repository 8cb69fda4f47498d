"""Trials: requests of a person to one version, from the console or TorchServe's API.

They go straight to the engine. What counts requests and judges versions reads the gateway's logs,
which never tell of them.
"""

import json
from collections.abc import Mapping
from typing import Any

from vlserve.control.domain import ClientRequest, EngineAnswer, Instance, Key, VersionRecord
from vlserve.control.gateway.traffic import Traffic
from vlserve.control.ports import Engine
from vlserve.control.store.ledger import Ledger
from vlserve.errors import ControlError, NotReady
from vlserve.runtime.exchange import raw_of
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

    def describe_handle(self, version: VersionRecord) -> Mapping[str, Any]:
        """Ask an adopted version's handler for its own description, as TorchServe does.

        Returns:
            The JSON object that its describe_handle returns; an empty one, as of TorchServe, where
            it has none, returns anything else, or does not answer.
        """
        origin = version.manifest.adopted
        if origin is None or not origin.describes:
            return {}
        path = f"/predictions/{origin.name}"
        fields = {"path": path, "headers": {"describe": "True"}, "content": ""}
        try:
            answer = self._engine.predict(self._holding(version.key), *version.key, fields)
            raw = raw_of(dict(answer))
            description = json.loads(raw.content) if raw.status < 400 else None
        except (ControlError, ValueError, LookupError, RecursionError):
            return {}
        return description if isinstance(description, dict) else {}

    def _holding(self, key: Key) -> Instance:
        holdings = self._traffic.held
        for instance in self._traffic.instances:
            entry = holdings.get(instance.name, {}).get(key)
            if entry is not None and entry.workers_ready:
                return instance
        model, version = key
        raise NotReady(f"{model} {version} is not loaded: no instance of the engine holds it now")
