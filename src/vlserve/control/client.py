"""A client of the control service for Python; the command line uses it."""

import getpass
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from vlserve.control.control_access import OwnersKey, RemoteAccess
from vlserve.control.domain import EngineKind
from vlserve.control.tuning import Tuning
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.control.wire.views import (
    CaptureView,
    ConsoleLink,
    Deleted,
    EventView,
    Health,
    MarkView,
    ModelView,
    RefusalView,
    Registered,
    Released,
    TrafficView,
    Unloaded,
)
from vlserve.errors import (
    ArchiveError,
    ControlError,
    NotControl,
    StackError,
    Unauthorized,
    error_class,
)
from vlserve.settings import Settings
from vlserve.signing.beside import SignatureFiles
from vlserve.tls import PLAIN_HTTP, trust_of

V = TypeVar("V", bound=BaseModel)

ANSWER_TIMEOUT_S = 15.0
"""Of what only looks."""
IDLE_S = 2.0
"""How long a connection is kept between two requests. The service (uvicorn) ends one after 5 s, and
a request that is sent in that moment has no answer."""
_CONNECT_TIMEOUT_S = 2.0
_ANNOUNCEMENT_S = 10.0
_CHUNK_BYTES = 1024 * 1024
_LONGEST_S = 900.0  # a register that loads, or an unload that drains, ends well before


class ControlClient:
    """Methods raise what the service raised (the error tree of vlserve.errors, with the service's
    message), or StackError when it is not up. A context manager.

    Args:
        url: of the service.
        key: the file of the owner's key, or the address and key by which another machine gets in.
        trust: the certificates that a service which speaks TLS must have.
    """

    def __init__(
        self, url: str, key: Path | RemoteAccess, trust: ssl.SSLContext = PLAIN_HTTP
    ) -> None:
        self.url = url
        self._key = OwnersKey(key) if isinstance(key, Path) else key
        self._http = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(_LONGEST_S, connect=_CONNECT_TIMEOUT_S),
            limits=httpx.Limits(keepalive_expiry=IDLE_S),
            trust_env=False,
            verify=trust,
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return a client of the stack that ``settings`` describe, by its owner's key."""
        trust = trust_of(settings.control_tls)
        return cls(settings.control_url, settings.control_key_file, trust)

    @classmethod
    def at(cls, access: RemoteAccess) -> Self:
        """Return a client of a service on another machine. SettingsError."""
        encrypted = access.url.startswith("https://")
        return cls(access.url, access, access.trust() if encrypted else PLAIN_HTTP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def is_up(self) -> bool:
        """Return whether the service answers at all."""
        try:
            self.health()
        except Unauthorized:
            return True
        except (StackError, ControlError):
            return False
        return True

    def health(self) -> Health:
        return self._read(Health, self._call("GET", "/health"))

    def models(self) -> list[ModelView]:
        return self._read_all(ModelView, self._call("GET", "/models"), "models")

    def model(self, model: str) -> ModelView:
        return self._read(ModelView, self._call("GET", f"/models/{_quoted(model)}"))

    def traffic(self) -> list[TrafficView]:
        """Return the figures of the last 15 minutes; models without a request are left out."""
        return self._read_all(TrafficView, self._call("GET", "/traffic"), "traffic")

    def history(self, model: str) -> list[EventView]:
        """Return everything that happened to a model, oldest first."""
        answer = self._call("GET", f"/models/{_quoted(model)}/history")
        return self._read_all(EventView, answer, "events")

    def marks(self, model: str) -> list[MarkView]:
        """Return which answers of a model's shadow pairs people said are right, oldest first."""
        answer = self._call("GET", f"/models/{_quoted(model)}/marks")
        return self._read_all(MarkView, answer, "marks")

    def refusals(self) -> list[RefusalView]:
        """Return the calls that named keys were refused for their role, by the time of the last."""
        return self._read_all(RefusalView, self._call("GET", "/refusals"), "refusals")

    def capture(self, model: str) -> CaptureView:
        """Return what is kept of the inputs of a model's requests."""
        return self._read(CaptureView, self._call("GET", f"/models/{_quoted(model)}/capture"))

    def start_capture(self, model: str, share: float, days: float, max_mib: int) -> CaptureView:
        """Keep inputs of a ``share`` of a model's requests, each for ``days``, in ``max_mib``."""
        body = {"share": share, "days": days, "max_mib": max_mib}
        answer = self._call("POST", f"/models/{_quoted(model)}/capture", json=body)
        return self._read(CaptureView, answer)

    def end_capture(self, model: str, word: Literal["stop", "purge"]) -> CaptureView:
        """Keep no more inputs; ``purge`` deletes those that are kept."""
        answer = self._call("POST", f"/models/{_quoted(model)}/capture/{word}", json={})
        return self._read(CaptureView, answer)

    def register(
        self,
        archive: Path,
        tuning: Tuning | None = None,
        engine: EngineKind | None = None,
        files: SignatureFiles | None = None,
    ) -> Registered:
        """Returns when the version is ready. ``tuning``: kept with the version in the place of the
        one it has; None: it has none. ``engine``: which one is to run it; None: as before, and a
        new version the stack's own. ``files``: its signature and provenance. ArchiveError,
        VersionConflict, SignatureRefused, LoadFailed, TuningInvalid, EngineNotRun,
        OnAnotherEngine."""
        parameters: dict[str, str] = {"tuning": tuning.model_dump_json()} if tuning else {}
        if engine is not None:
            parameters["engine"] = engine
        begin = files.signature + files.provenance if files else b""
        if files is not None:
            parameters["signature_bytes"] = str(len(files.signature))
            parameters["provenance_bytes"] = str(len(files.provenance))
        with archive.open("rb") as body:
            answer = self._call(
                "POST",
                "/versions",
                params={"name": archive.name, **_user(), **parameters},
                content=_joined(begin, body),
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(len(begin) + archive.stat().st_size),
                },
            )
        return self._read(Registered, answer)

    def release(self, model: str, version: int) -> Released:
        """Give ``version`` all traffic; in force when this returns. NotReady, VersionNotFound."""
        body = {"version": version, "now": True}
        return self._read(
            Released, self._call("POST", f"/models/{_quoted(model)}/releases", json=body)
        )

    def start_rollout(
        self, model: str, version: int, changes: Mapping[str, Any] | None = None
    ) -> RolloutView:
        """Begin to release ``version`` in steps; the first is in force when this returns.
        ``changes``: entries of rollout.yaml for this release. ReleaseUnderWay, NotReady."""
        body = {"version": version, "changes": dict(changes or {})}
        return self._read(
            RolloutView, self._call("POST", f"/models/{_quoted(model)}/releases", json=body)
        )

    def rollout(self, model: str) -> RolloutView:
        """Return the rollout under way, or the last one. NoRelease."""
        return self._read(RolloutView, self._call("GET", f"/models/{_quoted(model)}/release"))

    def pause(self, model: str) -> RolloutView:
        """Keep the weight until `resume`; an alarm still takes the candidate back. NoRelease."""
        return self._steer_rollout(model, "pause")

    def resume(self, model: str) -> RolloutView:
        return self._steer_rollout(model, "resume")

    def abort(self, model: str) -> RolloutView:
        """Give stable all traffic again; in force when this returns. NoRelease, NotReady."""
        return self._steer_rollout(model, "abort")

    def promote(self, model: str) -> RolloutView:
        """Give the candidate all traffic; in force when this returns. NoRelease, NotReady."""
        return self._steer_rollout(model, "promote")

    def _steer_rollout(self, model: str, word: str) -> RolloutView:
        return self._read(
            RolloutView, self._call("POST", f"/models/{_quoted(model)}/release/{word}", json={})
        )

    def rollback(self, model: str, version: int | None = None) -> Released:
        """Give all traffic back to the stable version before, or to ``version``.

        Raises NothingToRollBackTo or NotReady.
        """
        body = {"version": version}
        return self._read(
            Released, self._call("POST", f"/models/{_quoted(model)}/rollback", json=body)
        )

    def unload(self, model: str, version: int) -> Unloaded:
        """Drain a version and take it out of the engine. StillServing."""
        path = f"/models/{_quoted(model)}/versions/{version}/unload"
        return self._read(Unloaded, self._call("POST", path, json={}))

    def delete(self, model: str, version: int) -> Deleted:
        """Remove the archive of a retired or failed version. NotUnloaded, VersionNotFound."""
        path = f"/models/{_quoted(model)}/versions/{version}/delete"
        return self._read(Deleted, self._call("POST", path, json={}))

    def announce_batch_job(self, out: Path) -> None:
        """Have the console show how far the offline job is whose output is in ``out``."""
        body = {"out": str(out.resolve())}
        self._call("POST", "/batch-jobs", json=body, timeout=_ANNOUNCEMENT_S)

    def console_link(self) -> ConsoleLink:
        """Return a path of the service that lets one browser into the console."""
        return self._read(ConsoleLink, self._call("POST", "/console-links", json={}))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        if method != "GET":  # a word may take long, but not to be taken
            self._ask("GET", "/")
        headers = {**options.pop("headers", {}), **self._authorization()}
        response = self._ask(method, path, headers=headers, **options)
        try:
            answer = response.json()
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise self._key.refused(f"the control service at {self._http.base_url}")
            if response.is_error:
                raise raised_class(answer["error"]["code"])(answer["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._not_ours(f"answered {response.status_code}") from error
        return answer

    def _read(self, view: type[V], answer: Any) -> V:
        """Return an answer as what the service says; NotControl where another program said it."""
        try:
            return view.model_validate(answer)
        except ValidationError as error:
            raise self._not_ours("answered") from error

    def _read_all(self, view: type[V], answer: Any, name: str) -> list[V]:
        items = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise self._not_ours("answered")
        return [self._read(view, each) for each in items]

    def _not_ours(self, action: str) -> NotControl:
        return NotControl(
            f"{self._http.base_url} {action}, and not as the control service does: does its port "
            "(control.port) belong to another program?"
        )

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request. StackDown says what to do where nothing answers."""
        if method == "GET":
            options["timeout"] = httpx.Timeout(ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        try:
            return self._http.request(method, path, **options)
        except httpx.DecodingError as error:
            raise self._not_ours("answered") from error
        except httpx.ReadTimeout as error:
            raise self._key.hangs(
                f"the control service at {self._http.base_url} takes questions and answers none: "
                "it is suspended or hangs"
            ) from error
        except httpx.TransportError as error:
            raise self._key.down(
                f"the control service does not answer at {self._http.base_url} "
                f"({error or type(error).__name__})"
            ) from error

    def _authorization(self) -> dict[str, str]:
        key = self._key.read()
        return {} if key is None else {"Authorization": f"Bearer {key}"}


def _joined(begin: bytes, body: BinaryIO) -> Iterator[bytes]:
    """Yield the parts of a body: these bytes, then the file's."""
    yield begin
    while chunk := body.read(_CHUNK_BYTES):
        yield chunk


def _quoted(name: str) -> str:
    """Return a name as one segment of a path, also one that no model can have."""
    return quote(name, safe="", errors="surrogateescape")


def raised_class(code: str) -> type[ControlError | ArchiveError]:
    """Return the class that the service raised; ControlError where it has no class of ours."""
    kind = error_class(code)
    return kind if kind and issubclass(kind, ControlError | ArchiveError) else ControlError


def _user() -> dict[str, str]:
    """Return who asks, for the history; nothing where the system has no name for him."""
    try:
        name = "".join(letter for letter in getpass.getuser() if letter.isprintable())[:64]
    except (OSError, KeyError):  # the latter before Python 3.13
        return {}
    return {"by": name} if name else {}
