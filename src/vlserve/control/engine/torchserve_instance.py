"""One TorchServe 0.12 instance on loopback: its management API, with tokens.

What it takes care of, each measured: a register over gRPC stalls nobody; the default version of a
model is not deleted while another one is there; of two first versions of a model, registered at
once, TorchServe would lose one; what a failed load leaves behind (a version with no workers, a copy
of the archive in the engine's store) is taken away again.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vlserve.control import caller
from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    Reply,
)
from vlserve.control.engine import torchserve_grpc, worker_log
from vlserve.control.engine.adopted_settings import settings_of
from vlserve.control.engine.endpoints import Endpoint
from vlserve.control.engine.instance import MANAGEMENT_TIMEOUT_S, json_of, not_up_in_time, reply_of
from vlserve.control.tuning import Serving
from vlserve.errors import CallerGone, ControlError, EngineUnavailable, LoadFailed
from vlserve.runtime.headers import REQUEST_ID, SENT_CONTENT_TYPE
from vlserve.settings_sections import EngineSettings
from vlserve_worker.own_ids import probe_id

_UNLOAD_TIMEOUT_S = 130.0  # TorchServe itself gives workers 120 s to go
_LOG_DELAY_S = 8.0
"""What a worker printed last reaches the log after its failure is reported: up to some seconds
where the machine is busy. Only a failed load that left no word waits for all of it."""
_TRACEBACK_DELAY_S = 4.0
"""An exit code may be logged before the traceback that explains it: they come by two pipes."""
_STARTED = "workers"
"""In what is said of a load whose workers did not come up. Of a file that it cannot read TorchServe
itself says why."""
_POLL_S = 0.1


class TorchServeInstance:
    """Implements vlserve.control.engine.instance.EngineInstance."""

    kind: EngineKind = "torchserve"

    def __init__(self, endpoint: Endpoint, settings: EngineSettings, http: httpx.Client) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._settings = settings
        self._http = http
        self._first: dict[str, threading.Lock] = {}
        self._management = f"http://{endpoint.host}:{endpoint.management_port}"

    def confirm(self) -> None:
        """Return if it answers, and takes the tokens; EngineUnavailable otherwise."""
        self._listed(1)

    def listens(self, timeout_s: float) -> Reply:
        """Ask for its models; any word is an answer."""
        try:
            self._http.get(f"{self._management}/models", timeout=timeout_s)
        except httpx.TransportError as error:
            return reply_of(error)
        return Reply.ANSWERED

    def instance(self) -> Instance:
        self._listed(1)  # it answers, and takes the tokens
        endpoint = self._endpoint
        token = self._tokens()["inference"]
        return Instance(self.name, endpoint.host, endpoint.inference_port, token)

    def loaded(self) -> dict[Key, LoadedVersion]:
        versions = [
            description
            for model in self._listed(1000)
            for description in self._describe(f"{model['modelName']}/all")
        ]
        return {
            (description["modelName"], int(description["modelVersion"])): _loaded(description)
            for description in versions
        }

    def _listed(self, most: int) -> list[dict[str, Any]]:
        """Its models. EngineUnavailable where it does not say."""
        response = self._call("GET", f"/models?limit={most}")
        if not response.is_success:
            raise EngineUnavailable(f"{self.name} lists no models: {_message(response)}")
        return list(json_of(response)["models"])

    def serves(self, model: str, version: int) -> bool:
        descriptions = self._describe(f"{model}/{version}")
        return bool(descriptions) and _loaded(descriptions[0]).workers_ready > 0

    def load(self, model: str, version: int, archive: Path, serving: Serving | None) -> None:
        """Register, or wait for workers that come up already, as after a crash of this service."""
        settings = settings_of(self._settings, serving, archive)
        if self._comes_up(model, version, settings.load_timeout_s):
            return
        self.remove(model, version)
        endpoint = self._endpoint
        endpoint.write_threads(model, version, settings.threads)
        endpoint.failed_load(model, version).unlink(missing_ok=True)
        log_end = worker_log.log_size(endpoint.logs)
        address = f"{endpoint.host}:{endpoint.grpc_management_port}"
        began = time.monotonic()
        try:
            with self._known_or_first(model):
                torchserve_grpc.register(address, self._tokens()["management"], archive, settings)
        except CallerGone:
            raise
        except LoadFailed as error:
            in_time = time.monotonic() - began < 0.9 * settings.load_timeout_s
            started = _STARTED in str(error)
            reason = self._reason(model, version, log_end) if started else None
            if in_time:
                raise LoadFailed(reason or str(error)) from error
            detail = f"; one of them said: {reason}" if reason else ""
            raise LoadFailed(not_up_in_time(settings) + detail) from error

    def remove(self, model: str, version: int) -> None:
        """Take the version out, whatever state it is in, and its archive out of the store."""
        response = self._call("DELETE", f"/models/{model}/{version}", _UNLOAD_TIMEOUT_S)
        if response.status_code == httpx.codes.FORBIDDEN:
            self._give_up_default(model, version)
            response = self._call("DELETE", f"/models/{model}/{version}", _UNLOAD_TIMEOUT_S)
        if response.is_error and response.status_code != httpx.codes.NOT_FOUND:
            raise ControlError(
                f"{self.name} did not unload {model} {version}: {_message(response)}"
            )
        (self._endpoint.store / f"{model}-{version}.mar").unlink(missing_ok=True)
        self._endpoint.threads_file(model, version).unlink(missing_ok=True)
        self._endpoint.failed_load(model, version).unlink(missing_ok=True)

    def mend(self) -> None:
        """Do nothing: TorchServe starts its workers anew itself."""

    def close(self) -> None:
        """Do nothing: nothing runs beside the calls."""

    def ask(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> EngineAnswer:
        response = self._http.post(
            f"http://{instance.host}:{instance.port}/predictions/{model}/{version}",
            json=dict(fields),
            headers={"Authorization": f"Bearer {instance.token}", REQUEST_ID: probe_id()},
            timeout=timeout_s,
        )
        return EngineAnswer(response.status_code, response.content)

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        model, version = key
        response = self._http.post(
            f"http://{instance.host}:{instance.port}/predictions/{model}/{version}",
            content=request.body,
            headers={
                "Authorization": f"Bearer {instance.token}",
                "Content-Type": "application/octet-stream",
                SENT_CONTENT_TYPE: request.content_type,
                REQUEST_ID: request.request_id,
            },
            timeout=timeout_s,
        )
        timing = response.headers.get("server-timing", "")
        return EngineAnswer(response.status_code, response.content, timing)

    @contextmanager
    def _known_or_first(self, model: str) -> Iterator[None]:
        """One caller at a time until TorchServe knows some version of the model: of two that are
        its first it would lose one (ModelManager.createVersionedModel looks, then puts)."""
        first = self._first.setdefault(model, threading.Lock())
        is_first = False
        while not is_first and not self._describe(f"{model}/all"):
            caller.refuse_if_gone(f"{model} was not loaded")
            is_first = first.acquire(timeout=_POLL_S)
        try:
            yield
        finally:
            if is_first:
                first.release()

    def _give_up_default(self, model: str, version: int) -> None:
        """TorchServe refuses to delete a model's default version, and routes nothing by it here."""
        others = [
            description["modelVersion"]
            for description in self._describe(f"{model}/all")
            if description["modelVersion"] != str(version)
        ]
        if others:
            self._expect("PUT", f"/models/{model}/{others[0]}/set-default")

    def _comes_up(self, model: str, version: int, timeout_s: float) -> bool:
        """Whether workers of this version exist and one gets ready in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            descriptions = self._describe(f"{model}/{version}")
            if not descriptions or not descriptions[0]["workers"]:
                return False
            if _loaded(descriptions[0]).workers_ready:
                return True
            time.sleep(_POLL_S)
        return False

    def _describe(self, path: str) -> list[dict[str, Any]]:
        """Versions as TorchServe describes them; none when there is no such version."""
        response = self._call("GET", f"/models/{path}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return []
        return list(json_of(self._checked(response, path)))

    def _reason(self, model: str, version: int, log_end: int) -> str | None:
        """What a worker wrote as the load failed; else what the log has of it."""
        text = worker_log.failure(self._endpoint.failed_load(model, version))
        if text is not None:
            return text
        deadline = time.monotonic() + _LOG_DELAY_S
        while True:
            log = worker_log.read_since(self._endpoint.logs, log_end)
            words = worker_log.last_words(log, model, version)
            if words.printed:
                deadline = min(deadline, time.monotonic() + _TRACEBACK_DELAY_S)
            if words.exception or time.monotonic() >= deadline:
                return words.reason
            time.sleep(_POLL_S)

    def _tokens(self) -> dict[str, str]:
        """Read anew each time: every start of the engine writes new ones."""
        file = self._endpoint.key_file
        try:
            keys = json.loads(file.read_text(encoding="utf-8"))
            return {purpose: keys[purpose]["key"] for purpose in ("management", "inference")}
        except (OSError, ValueError, KeyError) as error:
            raise EngineUnavailable(f"{self.name} has no tokens in {file} yet") from error

    def _expect(self, method: str, path: str) -> httpx.Response:
        return self._checked(self._call(method, path), path)

    def _checked(self, response: httpx.Response, path: str) -> httpx.Response:
        if response.is_error:
            raise ControlError(f"{self.name} refused {path}: {_message(response)}")
        return response

    def _call(
        self, method: str, path: str, timeout_s: float = MANAGEMENT_TIMEOUT_S
    ) -> httpx.Response:
        """EngineUnavailable when nothing answers, or when it does not know the tokens (yet)."""
        token = self._tokens()["management"]
        try:
            response = self._http.request(
                method,
                self._management + path,
                headers={"Authorization": f"Bearer {token}"},
                timeout=timeout_s,
            )
        except httpx.TransportError as error:
            raise EngineUnavailable(
                f"{self.name} does not answer at {self._management}: "
                f"{error or type(error).__name__}"
            ) from error
        if response.status_code == httpx.codes.BAD_REQUEST and "InvalidKey" in response.text:
            raise EngineUnavailable(
                f"{self.name} does not take the token in {self._endpoint.key_file}: "
                "it is starting, or its port belongs to another engine"
            )
        return response


def _loaded(description: Mapping[str, Any]) -> LoadedVersion:
    ready = sum(worker["status"] == "READY" for worker in description["workers"])
    return LoadedVersion(ready, int(description["jobQueueStatus"]["pendingRequests"]))


def _message(response: httpx.Response) -> str:
    answer = json_of(response)
    message = answer.get("message") if isinstance(answer, dict) else None
    return str(message or response.text.strip()[:300] or response.status_code)
