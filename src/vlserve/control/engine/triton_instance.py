"""One Triton 2.51 instance on loopback: its repository and its workers.

What it takes care of, each measured: loads go over gRPC, where one that hangs stalls no request; a
worker that died is never replaced by Triton itself, so that is done here (triton_mender.py); an
unload that waits for a dead worker is ended by killing what is left of the version.
"""

import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import httpx
import psutil

from vlserve.control.domain import (
    ClientRequest,
    EngineAnswer,
    EngineKind,
    Instance,
    Key,
    LoadedVersion,
    Reply,
)
from vlserve.control.engine import triton_grpc, triton_workers
from vlserve.control.engine.adopted_settings import settings_of
from vlserve.control.engine.endpoints import Endpoint
from vlserve.control.engine.instance import MANAGEMENT_TIMEOUT_S, json_of, not_up_in_time, reply_of
from vlserve.control.engine.triton_mender import Mender
from vlserve.control.engine.triton_repository import TritonRepository, key_of, triton_name
from vlserve.control.engine.triton_workers import Worker
from vlserve.control.tuning import Serving
from vlserve.errors import ControlError, EngineUnavailable, LoadFailed
from vlserve.runtime.errors import ArchiveError
from vlserve.runtime.headers import REQUEST_ID, SENT_CONTENT_TYPE
from vlserve.settings_sections import EngineSettings
from vlserve_worker.own_ids import probe_id

_WATCHDOG_S = 3.0  # after its time limit, a worker that hangs in its start ends itself
_GONE_S = 10.0  # until an unload, which waits for what is under way, is helped along
_GONE_AFTER_DEATH_S = 1.0  # where it may wait for what a dead worker had, for ever
_POLL_S = 0.05
_JSON_LENGTH = "Inference-Header-Content-Length"
"""How much of an answer is Triton's own JSON; 0 in a request: the whole body is the input."""


class TritonInstance:
    """Implements vlserve.control.engine.instance.EngineInstance."""

    kind: EngineKind = "triton"

    def __init__(self, endpoint: Endpoint, settings: EngineSettings, http: httpx.Client) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._settings = settings
        self._http = http
        self._url = f"http://{endpoint.host}:{endpoint.inference_port}"
        self._grpc = f"{endpoint.host}:{endpoint.grpc_management_port}"
        self._repository = TritonRepository(endpoint)
        self._locks: WeakValueDictionary[Key, threading.Lock] = WeakValueDictionary()
        """Of the versions that somebody works on."""
        self._locking = threading.Lock()
        self._short: list[Key] = []  # the versions that lacked a worker when last counted
        self._living_then: dict[Key, Sequence[Worker]] = {}  # when last counted
        self._mender = Mender(
            self.name, self._repository, lambda key: self._living(*key), self._mended, self._lock
        )

    def confirm(self) -> None:
        self._index()

    def instance(self) -> Instance:
        self._index()
        token = self._tokens()["inference"]
        return Instance(
            self.name, self._endpoint.host, self._endpoint.inference_port, token, engine=self.kind
        )

    def listens(self, timeout_s: float) -> Reply:
        try:
            self._http.get(f"{self._url}/v2/health/live", timeout=timeout_s)
        except httpx.TransportError as error:
            return reply_of(error)
        return Reply.ANSWERED

    def loaded(self) -> dict[Key, LoadedVersion]:
        states = self._index()
        workers = self._workers()
        versions, live_workers, short = {}, {}, []
        for key, state in states.items():
            if state not in ("READY", "LOADING"):
                continue
            record = self._repository.read(*key)
            if state != "READY" or record is None:
                versions[key] = LoadedVersion(0, 0)
                continue
            live_workers[key] = workers.get(self._repository.code_folder(*key), ())
            count = len(self._mender.serving(key, record, live_workers[key]))
            if count < record.workers:
                short.append(key)
            versions[key] = LoadedVersion(min(count, record.workers), 0)
        self._short, self._living_then = short, live_workers
        return versions

    def mend(self) -> None:
        self._mender.watch(self._living_then)
        for key in self._short:
            self._mender.mend(key)

    def close(self) -> None:
        self._mender.close()

    def serves(self, model: str, version: int) -> bool:
        return self._state(model, version) == "READY" and bool(self._living(model, version))

    def load(self, model: str, version: int, archive: Path, serving: Serving | None) -> None:
        with self._lock((model, version)):
            settings = settings_of(self._settings, serving, archive)
            limit_s = settings.load_timeout_s
            if self._comes_up(model, version, limit_s) or self._restarts((model, version)):
                return
            self._remove(model, version)
            try:
                self._repository.write(model, version, archive, settings)
            except (ArchiveError, OSError) as error:  # as of a full disk
                raise LoadFailed(str(error)) from error
            try:
                self._load(model, version, limit_s + _WATCHDOG_S)
            except TimeoutError as error:
                raise LoadFailed(not_up_in_time(settings)) from error

    def remove(self, model: str, version: int) -> None:
        with self._lock((model, version)):
            self._remove(model, version)

    def ask(
        self,
        instance: Instance,
        model: str,
        version: int,
        fields: Mapping[str, Any],
        timeout_s: float,
    ) -> EngineAnswer:
        body = json.dumps(dict(fields)).encode()
        # without a content type: by that header a worker knows what a client sent
        request = ClientRequest(body, content_type="", request_id=probe_id())
        return self.send(instance, (model, version), request, timeout_s)

    def send(
        self, instance: Instance, key: Key, request: ClientRequest, timeout_s: float
    ) -> EngineAnswer:
        type_header = {SENT_CONTENT_TYPE: request.content_type} if request.content_type else {}
        response = self._http.post(
            f"http://{instance.host}:{instance.port}/v2/models/{triton_name(*key)}/infer",
            content=request.body,
            headers={
                "Authorization": f"Bearer {instance.token}",
                _JSON_LENGTH: "0",
                REQUEST_ID: request.request_id,
                **type_header,
            },
            timeout=timeout_s,
        )
        return _answer_of(response)

    def _load(self, model: str, version: int, timeout_s: float) -> None:
        token = self._tokens()["management"]
        triton_grpc.load(self._grpc, token, triton_name(model, version), timeout_s)

    def _mended(self, key: Key) -> None:
        """Make Triton take the version as it is written now."""
        if self._server() is None:  # all workers die with it
            raise EngineUnavailable(f"{self.name} does not run")
        record = self._repository.read(*key)
        limit = record.parameters.get("load_timeout_s") if record else None
        limit_s = float(limit) if limit else self._settings.load_timeout_s
        self._load(*key, limit_s + _WATCHDOG_S)

    def _remove(self, model: str, version: int) -> None:
        state = self._state(model, version)
        workers = [worker.process for worker in self._living(model, version)]
        if state == "LOADING":  # its unload would wait for the load
            triton_workers.kill(workers)
        if state in ("READY", "LOADING"):
            token = self._tokens()["management"]
            triton_grpc.unload(self._grpc, token, triton_name(model, version))
        # What can be waited for has been, before an unload: its workers are idle.
        wait_s = _GONE_AFTER_DEATH_S if self._lost_one(model, version, workers) else _GONE_S
        triton_workers.kill(triton_workers.wait_until_gone(workers, wait_s))
        triton_workers.wait_until_gone(workers, _GONE_S)
        self._repository.remove(model, version)

    def _lost_one(self, model: str, version: int, workers: Sequence[psutil.Process]) -> bool:
        """Return whether a worker of the version died since it was loaded."""
        record = self._repository.read(model, version)
        if record is None:
            return False
        return record.drawn > record.workers or len(workers) < len(record.numbers)

    def _comes_up(self, model: str, version: int, timeout_s: float) -> bool:
        """Return whether this version is being loaded and gets ready in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self._state(model, version)
            if state != "LOADING":
                return state == "READY" and bool(self._living(model, version))
            time.sleep(_POLL_S)
        return False

    def _restarts(self, key: Key) -> bool:
        """Start the workers of a version that lost all of them, and return whether they came up: a
        request waits for them, where an unload would refuse it."""
        if self._state(*key) != "READY":
            return False
        try:
            return self._mender.restart(key)
        except (ControlError, TimeoutError, OSError):
            return False

    def _lock(self, key: Key) -> threading.Lock:
        with self._locking:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.Lock()
            return lock

    def _living(self, model: str, version: int) -> Sequence[Worker]:
        return self._workers().get(self._repository.code_folder(model, version), [])

    def _workers(self) -> Mapping[Path, Sequence[Worker]]:
        server = self._server()
        return triton_workers.living(server) if server is not None else {}

    def _server(self) -> psutil.Process | None:
        try:
            return psutil.Process(int(self._endpoint.pid_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, psutil.Error):
            return None

    def _state(self, model: str, version: int) -> str:
        """Return Triton's word for the version; empty where it does not know it."""
        return self._index().get((model, version), "")

    def _index(self) -> dict[Key, str]:
        """Return what the repository holds: version -> state."""
        token = self._tokens()["management"]
        try:
            response = self._http.post(
                f"{self._url}/v2/repository/index",
                headers={"Authorization": f"Bearer {token}"},
                timeout=MANAGEMENT_TIMEOUT_S,
            )
        except httpx.TransportError as error:
            raise EngineUnavailable(
                f"{self.name} does not answer at {self._url}: {error or type(error).__name__}"
            ) from error
        models = json_of(response)
        if not response.is_success or not isinstance(models, list):
            raise EngineUnavailable(
                f"{self.name} lists no models ({response.status_code}): it is starting, or its "
                "port belongs to another engine"
            )
        keys = ((key_of(model["name"]), model.get("state", "")) for model in models)
        return {key: state for key, state in keys if key is not None}

    def _tokens(self) -> dict[str, str]:
        """Read anew each time: every start of the engine writes new ones."""
        file = self._endpoint.key_file
        try:
            tokens = json.loads(file.read_text(encoding="utf-8"))
            return {purpose: tokens[purpose] for purpose in ("management", "inference")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineUnavailable(f"{self.name} has no tokens in {file} yet") from error


def write_tokens(file: Path) -> dict[str, str]:
    """Draw the tokens of one start, and write them for the owner of the stack alone."""
    tokens = {purpose: secrets.token_hex(16) for purpose in ("inference", "management")}
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(json.dumps(tokens), encoding="utf-8")
    return tokens


def _answer_of(response: httpx.Response) -> EngineAnswer:
    """Return the worker's own answer: after Triton's JSON, a line `STATUS SERVER-TIMING`, of an
    adopted archive `STATUS;headers=BYTES SERVER-TIMING` and so many bytes of headers, and the body.
    An answer of Triton's has none of it."""
    length = response.headers.get(_JSON_LENGTH, "")
    if not response.is_success or not length.isdecimal():
        return EngineAnswer(response.status_code, response.content)
    line, _, body = response.content[int(length) :].partition(b"\n")
    word, _, timing = line.partition(b" ")
    status, _, about = word.partition(b";")
    code = int(status) if status.isdigit() else httpx.codes.BAD_GATEWAY
    size = about.removeprefix(b"headers=") if about.startswith(b"headers=") else b"0"
    return EngineAnswer(code, body[int(size) :], timing.decode("latin-1"))
