"""The Engine protocol over one or more instances, of whichever kind."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx

from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    Reply,
)
from vlserve.control.engine.endpoints import Endpoint
from vlserve.control.engine.instance import (
    MANAGEMENT_TIMEOUT_S,
    EngineInstance,
    reply_of,
)
from vlserve.control.engine.torchserve_instance import TorchServeInstance
from vlserve.control.engine.triton_instance import TritonInstance
from vlserve.control.tuning import Serving
from vlserve.errors import ControlError, EngineBusy, EngineUnavailable, NotReady
from vlserve.settings_sections import EngineSettings
from vlserve.tls import PLAIN_HTTP
from vlserve_worker.crash_notes import notes_folder, remove_notes

_ANSWER_TIMEOUT_S = 10.0
_MARGIN_S = 5.0
"""The engine says itself that a worker took longer than it may: its words are waited for."""

_KINDS: Mapping[EngineKind, Callable[[Endpoint, EngineSettings, httpx.Client], EngineInstance]] = {
    "torchserve": TorchServeInstance,
    "triton": TritonInstance,
}

T = TypeVar("T")


class EngineGroup:
    """Implements vlserve.control.ports.Engine. Thread-safe."""

    def __init__(self, endpoints: Sequence[Endpoint], settings: EngineSettings) -> None:
        self._http = httpx.Client(trust_env=False, timeout=MANAGEMENT_TIMEOUT_S, verify=PLAIN_HTTP)
        self._first_answer_timeout_s = settings.response_timeout_s + _MARGIN_S
        self._state_dir = endpoints[0].folder.parent
        self._kinds: dict[str, EngineKind] = {each.name: each.kind for each in endpoints}
        self._servers: dict[str, EngineInstance] = {
            endpoint.name: _KINDS[endpoint.kind](endpoint, settings, self._http)
            for endpoint in endpoints
        }

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._http.close()

    def kinds(self) -> Mapping[str, EngineKind]:
        return self._kinds

    def instances(self) -> Sequence[Instance]:
        return list(self._ask_all(lambda server: server.instance()).values())

    def loaded(self) -> Mapping[str, Mapping[Key, LoadedVersion]]:
        return self._ask_all(lambda server: server.loaded())

    def load(
        self,
        model: str,
        version: int,
        archive: Path,
        serving: Serving | None = None,
        engine: EngineKind | None = None,
    ) -> None:
        of_kind = self._of_kind(engine)
        if not of_kind:
            raise EngineUnavailable(f"no instance of {engine} answers: see `vlserve status`")
        servers = [server for server in of_kind if not server.serves(model, version)]
        if not servers:
            return
        with ThreadPoolExecutor(len(servers)) as pool:
            loads = {
                server: pool.submit(
                    copy_context().run, server.load, model, version, archive, serving
                )
                for server in servers
            }
        failures = [
            (server, error) for server, load in loads.items() if (error := load.exception())
        ]
        if not failures:
            return
        for server in servers:
            with suppress(ControlError):  # the reason of the failure matters more
                server.remove(model, version)
        server, error = failures[0]
        if isinstance(error, ControlError):
            raise type(error)(f"{model} {version} on {server.name}: {error}") from error
        raise error

    def unload(self, model: str, version: int, engine: EngineKind | None = None) -> None:
        for server in self._of_kind(engine):
            server.remove(model, version)
        if engine is None:  # who loads it anew suspects nothing that was before
            remove_notes(notes_folder(self._state_dir, model, version))

    def mend(self) -> None:
        for server in self._servers.values():
            server.mend()

    def listens(self, name: str, timeout_s: float) -> Reply:
        return self._servers[name].listens(timeout_s)

    def predicts(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> Reply:
        try:
            self._ask(instance, model, version, fields, timeout_s)
        except httpx.TransportError as error:
            return reply_of(error)
        return Reply.ANSWERED

    def predict(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        *,
        just_loaded: bool = False,
    ) -> Mapping[str, Any]:
        """NotReady, with the engine's words, when the answer is an error or no JSON object
        (EngineBusy: it has no room); EngineUnavailable when none comes in time: the first one of a
        version takes longest, and may take what a worker may (engine.response_timeout_s)."""
        what = f"{model} {version} on {instance.name}"
        timeout_s = self._first_answer_timeout_s if just_loaded else _ANSWER_TIMEOUT_S
        try:
            answer = self._ask(instance, model, version, fields, timeout_s)
        except httpx.TransportError as error:
            reason = error or type(error).__name__
            raise EngineUnavailable(f"{what} does not answer: {reason}") from error
        content = _json_object(answer.body)
        if answer.status >= httpx.codes.BAD_REQUEST or content is None:
            text = answer.body.decode("utf-8", "replace").strip()[:300]
            busy = answer.status == httpx.codes.SERVICE_UNAVAILABLE
            raise (EngineBusy if busy else NotReady)(f"{what} answered {answer.status}: {text}")
        return content

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        try:
            return self._servers[instance.name].send(instance, key, request, timeout_s)
        except httpx.TransportError as error:
            model, version = key
            reason = error or type(error).__name__
            raise EngineUnavailable(
                f"{model} {version} on {instance.name} does not answer: {reason}"
            ) from error

    def _ask(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> EngineAnswer:
        return self._servers[instance.name].ask(instance, model, version, fields, timeout_s)

    def _of_kind(self, engine: EngineKind | None) -> list[EngineInstance]:
        """Return the instances of one kind that answer, or all that do."""
        return [each for each in self._answering() if engine in (None, self._kinds[each.name])]

    def _ask_all(self, question: Callable[[EngineInstance], T]) -> dict[str, T]:
        """Ask at the same time: one that hangs keeps the answers of the others waiting once."""
        answers = {}
        with ThreadPoolExecutor(len(self._servers)) as pool:
            futures = {name: pool.submit(question, each) for name, each in self._servers.items()}
        for name, answer in futures.items():
            with suppress(EngineUnavailable):
                answers[name] = answer.result()
        return answers or self._nobody_answers()

    def _nobody_answers(self) -> NoReturn:
        names = ", ".join(self._servers)
        raise EngineUnavailable(f"no engine instance answers ({names}): see `vlserve status`")

    def _answering(self) -> list[EngineInstance]:
        return [self._servers[name] for name in self._ask_all(lambda server: server.confirm())]


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    """Return the object that ``body`` is in JSON; None where it is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
