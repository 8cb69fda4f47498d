"""The Engine protocol over one or more TorchServe instances."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx

from vlserve.control.domain import Instance, Key, LoadedVersion, Reply
from vlserve.control.engine.endpoints import Endpoint
from vlserve.control.engine.torchserve_instance import (
    MANAGEMENT_TIMEOUT_S,
    TorchServeInstance,
    json_of,
    reply_of,
)
from vlserve.control.tuning import Serving
from vlserve.errors import ControlError, EngineUnavailable, NotReady
from vlserve.settings import EngineSettings

_PROBE_TIMEOUT_S = 10.0

T = TypeVar("T")


class EngineGroup:
    """Implements vlserve.control.ports.Engine. Thread-safe."""

    def __init__(self, endpoints: Iterable[Endpoint], settings: EngineSettings) -> None:
        self._http = httpx.Client(trust_env=False, timeout=MANAGEMENT_TIMEOUT_S)
        self._servers = {
            endpoint.name: TorchServeInstance(endpoint, settings, self._http)
            for endpoint in endpoints
        }
        self._settings = settings

    def close(self) -> None:
        self._http.close()

    def instances(self) -> Sequence[Instance]:
        return list(self._ask_all(TorchServeInstance.instance).values())

    def loaded(self) -> Mapping[str, Mapping[Key, LoadedVersion]]:
        return self._ask_all(TorchServeInstance.loaded)

    def load(self, model: str, version: int, archive: Path, serving: Serving | None = None) -> None:
        servers = [server for server in self._answering() if not server.serves(model, version)]
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

    def unload(self, model: str, version: int) -> None:
        for server in self._answering():
            server.remove(model, version)

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
        self, instance: Instance, model: str, version: int, fields: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """NotReady, with the engine's words, when the answer is an error or no JSON object;
        EngineUnavailable when none comes."""
        what = f"{model} {version} on {instance.name}"
        try:
            response = self._ask(instance, model, version, fields, _PROBE_TIMEOUT_S)
        except httpx.TransportError as error:
            reason = error or type(error).__name__
            raise EngineUnavailable(f"{what} does not answer: {reason}") from error
        answer = json_of(response)
        if response.is_error or not isinstance(answer, dict):
            raise NotReady(f"{what} answered {response.status_code}: {response.text.strip()[:300]}")
        return answer

    def _ask(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> httpx.Response:
        return self._http.post(
            f"http://{instance.host}:{instance.port}/predictions/{model}/{version}",
            json=dict(fields),
            headers={"Authorization": f"Bearer {instance.token}"},
            timeout=timeout_s,
        )

    def _ask_all(self, question: Callable[["TorchServeInstance"], T]) -> dict[str, T]:
        """Ask at the same time: one that hangs keeps the answers of the others waiting once."""
        answers = {}
        with ThreadPoolExecutor(len(self._servers)) as pool:
            asked = {name: pool.submit(question, each) for name, each in self._servers.items()}
        for name, answer in asked.items():
            with suppress(EngineUnavailable):
                answers[name] = answer.result()
        return answers or self._nobody_answers()

    def _nobody_answers(self) -> NoReturn:
        names = ", ".join(self._servers)
        raise EngineUnavailable(f"no engine instance answers ({names}): see `vlserve status`")

    def _answering(self) -> list["TorchServeInstance"]:
        return [self._servers[name] for name in self._ask_all(TorchServeInstance.confirm)]
