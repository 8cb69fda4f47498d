"""An engine and a gateway in memory that keep the promises of vlserve.control.ports."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlserve.control import caller
from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    ModelRoute,
    Reply,
    Routing,
)
from vlserve.control.tuning import Serving
from vlserve.errors import EngineUnavailable, GatewayRefused, GatewaySilent, LoadFailed, NotReady
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Manifest


class FakeEngine:
    """Answers each archive's probes from its manifest. Faults are switched on by its fields."""

    def __init__(
        self, instances: Sequence[str] = ("engine-0",), triton: Sequence[str] = ()
    ) -> None:
        """``triton``: those of the instances that are Triton's; the others are TorchServe's."""
        self._triton = frozenset(triton)
        self.held: dict[str, dict[Key, LoadedVersion]] = {name: {} for name in instances}
        self.starts = dict.fromkeys(instances, 1)
        self.down: set[str] = set()
        self.hung: set[str] = set()
        """Their predictions end with ``let_go``."""
        self.let_go = threading.Event()
        self.predicts_nothing: set[str] = set()
        self.asked_for: list[tuple[str, Key, float]] = []
        self.fail_to_load: dict[Key, str] = {}
        self.fail_to_load_tuned: dict[Key, str] = {}
        self.answer_wrong: set[Key | tuple[str, str, int]] = set()
        """Everywhere, or on the instance that is named first."""
        self.answer_wrong_tuned: set[Key] = set()
        self.hold_loads = threading.Event()
        self.hold_loads.set()
        self.loading = threading.Event()
        self.loads: list[Key] = []
        self.unloads: list[Key] = []
        self.served: dict[Key, Serving | None] = {}
        self._manifests: dict[Key, Manifest] = {}
        self.sent: list[tuple[str, Key, ClientRequest]] = []
        self.trial_answer: Mapping[str, Any] = {}

    def restart_bare(self, name: str) -> None:
        self.held[name] = {}
        self.starts[name] += 1

    def kinds(self) -> Mapping[str, EngineKind]:
        return {name: "triton" if name in self._triton else "torchserve" for name in self.held}

    def instances(self) -> Sequence[Instance]:
        kinds = self.kinds()
        return [
            Instance(
                name,
                "127.0.0.1",
                8000 + index,
                f"token-{self.starts[name]}",
                engine=kinds[name],
            )
            for index, name in enumerate(self._answering())
        ]

    def loaded(self) -> Mapping[str, Mapping[Key, LoadedVersion]]:
        return {name: dict(self.held[name]) for name in self._answering()}

    def load(
        self,
        model: str,
        version: int,
        archive: Path,
        serving: Serving | None = None,
        engine: EngineKind | None = None,
    ) -> None:
        key = (model, version)
        of_kind = self._of_kind(engine)
        if not of_kind:
            raise EngineUnavailable(f"no instance of {engine} answers")
        targets = [name for name in of_kind if key not in self.held[name]]
        self.loading.set()
        self._wait_while_held()
        self.loads.append(key)
        if targets:
            self.served[key] = serving
        if key in self.fail_to_load:
            raise LoadFailed(self.fail_to_load[key])
        if serving is not None and key in self.fail_to_load_tuned:
            raise LoadFailed(self.fail_to_load_tuned[key])
        self._manifests[key] = verify_archive(archive)
        for name in targets:
            self.held[name][key] = LoadedVersion(workers_ready=2, pending=0)

    def _wait_while_held(self) -> None:
        deadline = time.monotonic() + 60.0
        while not self.hold_loads.wait(timeout=0.02):
            assert time.monotonic() < deadline
            caller.refuse_if_gone("the load was stopped")

    def unload(self, model: str, version: int, engine: EngineKind | None = None) -> None:
        for name in self._of_kind(engine):
            if self.held[name].pop((model, version), None) is not None:
                self.unloads.append((model, version))

    def mend(self) -> None:
        """Workers of this engine do not die."""

    def listens(self, name: str, timeout_s: float) -> Reply:
        silent = Reply.NONE_IN_TIME if name in self.hung else Reply.ANSWERED
        return Reply.GONE if name in self.down else silent

    def predicts(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> Reply:
        self.asked_for.append((instance.name, (model, version), timeout_s))
        if instance.name in self.down:
            return Reply.GONE
        silent = instance.name in self.predicts_nothing
        return Reply.NONE_IN_TIME if silent else Reply.ANSWERED

    def predict(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        *,
        just_loaded: bool = False,
    ) -> Mapping[str, Any]:
        key = (model, version)
        if instance.name in self.down:
            raise EngineUnavailable(f"{instance.name} does not answer")
        if instance.name in self.hung:
            self.let_go.wait(timeout=60.0)
            raise EngineUnavailable(f"{instance.name} does not answer")
        if key not in self.held[instance.name]:
            raise NotReady(f"{model} {version} on {instance.name} answered 404")
        manifest = self._manifests[key]
        answer = next(probe.answer for probe in manifest.probes if probe.fields == fields)
        body = {"model": model, "version": version, "request_id": "r", **answer}
        tuned = self.served.get(key) is not None
        wrong = {key, (instance.name, *key)} & self.answer_wrong or (
            tuned and key in self.answer_wrong_tuned
        )
        return body | ({"tags": []} if wrong else {})

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        """Answer with ``trial_answer``, or as the archive's first probe."""
        self.sent.append((instance.name, key, request))
        model, version = key
        identity = {"model": model, "version": version, "request_id": request.request_id}
        answer = self.trial_answer or self._manifests[key].probes[0].answer
        body = json.dumps({**identity, **answer}).encode()
        return EngineAnswer(200, body, "decode;dur=1.5, infer;dur=20.25")

    def _of_kind(self, engine: EngineKind | None) -> list[str]:
        kinds = self.kinds()
        return [name for name in self._answering() if engine in (None, kinds[name])]

    def _answering(self) -> list[str]:
        names = [name for name in self.held if name not in self.down]
        if not names:
            raise EngineUnavailable("no engine instance answers")
        return names


class FakeGateway:
    """Keeps what was applied; refuses with ``refuse`` when that is set, and says nothing when
    ``silent`` is."""

    def __init__(self) -> None:
        self.routing = Routing()
        self.applied: list[Routing] = []
        self.refuse = ""
        self.silent = False
        self.to_clients = Reply.ANSWERED
        self.asked_to_rotate = 0
        self.flying: dict[Key, int] = {}
        self.started: str | None = "its first"

    def apply(self, routing: Routing) -> None:
        if self.refuse:
            raise GatewayRefused(self.refuse)
        if self.silent:
            raise GatewaySilent("its admin page does not answer")
        if routing != self.routing:
            self.applied.append(routing)
        self.routing = routing

    def in_flight(self, model: str, version: int) -> int:
        return self.flying.get((model, version), 0)

    def rotate_access_log(self) -> None:
        self.asked_to_rotate += 1

    def start(self) -> str | None:
        return self.started

    def ready(self) -> bool:
        return not self.refuse and not self.silent

    def answers_clients(self) -> Reply:
        return self.to_clients

    def why_unanswered(self) -> str:
        return "connection refused"

    def route(self, model: str = "tagger") -> ModelRoute:
        return next(route for route in self.routing.models if route.model == model)
