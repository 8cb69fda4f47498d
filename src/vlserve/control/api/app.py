"""The control service over HTTP, on loopback alone. `python -m vlserve.control.api.app` runs it."""

import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import uvicorn
from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from vlserve.control.api.gateway_openapi import describe_predictions
from vlserve.control.assembly import Control, assemble
from vlserve.control.engine.torchserve import TorchServe, endpoints
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.control.service import ControlService
from vlserve.control.tuning import parse_tuning
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.control.wire.views import (
    ErrorBody,
    ErrorView,
    EventView,
    Health,
    ModelView,
    Registered,
    Released,
    Unloaded,
    error_code,
)
from vlserve.errors import (
    ArchiveError,
    EngineUnavailable,
    GatewayRefused,
    LoadFailed,
    ModelNotFound,
    NoRelease,
    NothingToRollBackTo,
    NotReady,
    ReleaseUnderWay,
    SettingsError,
    StillServing,
    TuningInvalid,
    VersionConflict,
    VersionNotFound,
    VlserveError,
)
from vlserve.runtime.manifest import ModelName, Version
from vlserve.settings import load_settings

_STATUS: Mapping[type[VlserveError], int] = {
    ModelNotFound: 404,
    VersionNotFound: 404,
    VersionConflict: 409,
    NotReady: 409,
    StillServing: 409,
    NothingToRollBackTo: 409,
    ReleaseUnderWay: 409,
    NoRelease: 409,
    SettingsError: 422,
    TuningInvalid: 422,
    ArchiveError: 422,
    LoadFailed: 422,
    EngineUnavailable: 503,
    GatewayRefused: 503,
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_JSON, _BYTES = "application/json", "application/octet-stream"

logger = logging.getLogger(__name__)

Model = Annotated[ModelName, Path(examples=["tagger"])]
Number = Annotated[Version, Path(examples=[2])]
FileName = Annotated[
    str, Query(max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]*$", examples=["tagger-2.mar"])
]

TuningJson = Annotated[
    str,
    Query(
        max_length=4096,
        description="What `vlserve tune` wrote beside the archive; left out: as all versions.",
    ),
]


class ReleaseRequest(BaseModel):
    """``now``: all traffic at once; else in steps, judged by serving_config/rollout.yaml, of which
    ``changes`` replaces entries for this release alone."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"version": 2, "changes": {"weights": [5, 25, 50, 100], "hold_s": 60}}]
        },
    )

    version: Version
    now: bool = False
    changes: dict[str, Any] = Field(default_factory=dict)


class RollbackRequest(BaseModel):
    """``version``: null for the stable version before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": None}]})

    version: Version | None = None


class Models(BaseModel):
    models: list[ModelView]


class History(BaseModel):
    events: list[EventView] = Field(description="Oldest first.")


def create_app(control: Control, max_archive_bytes: int) -> FastAPI:
    """The HTTP edge of ``control``, whose tick runs while the app does."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        control.start()
        yield
        await to_thread.run_sync(control.stop)

    app = FastAPIOffline(  # /docs without a content delivery network
        title="vlserve control",
        description="Register, release, roll back and unload versions. The command line uses it.",
        version="1",
        lifespan=running,
        dependencies=[Depends(_refuse_foreign)],
        responses={
            code: {"model": ErrorView, "description": what}
            for code, what in ((404, "Unknown"), (409, "Refused"), (422, "Unusable"), (503, "Down"))
        },
    )
    app.add_exception_handler(VlserveError, _on_vlserve_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(404, _on_http_error)
    app.add_exception_handler(405, _on_http_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    app.include_router(_verbs(control.service, max_archive_bytes))
    return app


def _verbs(service: ControlService, max_archive_bytes: int) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    def health() -> Health:
        """Whether this service answers, and what it sees of the engine and the gateway."""
        return service.health()

    @router.get("/models")
    def models() -> Models:
        """Every model with its versions, states and weights."""
        return Models(models=service.models())

    @router.get("/models/{model}")
    def model(model: Model) -> ModelView:
        return service.model(model)

    @router.get("/models/{model}/history")
    def history(model: Model) -> History:
        """Everything that happened to a model."""
        return History(events=service.history(model))

    @router.post(
        "/versions",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def register(
        request: Request,
        name: FileName = "",
        tuning: TuningJson | None = None,
    ) -> Registered:
        """Verify, keep, load and probe the archive in the body; returns when it is ready."""
        tuned = None if tuning is None else parse_tuning(tuning)
        archive = service.incoming / f"{uuid4().hex}.mar"
        try:
            await _receive(request, archive, max_archive_bytes)
            return await to_thread.run_sync(service.register, archive, name, tuned)
        finally:
            archive.unlink(missing_ok=True)

    @router.post("/models/{model}/releases")
    def release(model: Model, body: ReleaseRequest) -> Released | RolloutView:
        """Move the model's traffic to a version, or begin to; it is in force when this returns."""
        if body.now:
            return service.release(model, body.version)
        return service.rollouts.start(model, body.version, body.changes)

    @router.get("/models/{model}/release")
    def rollout(model: Model) -> RolloutView:
        """The release in steps that is under way, or the last one, with its evidence."""
        return service.rollouts.latest(model)

    @router.post("/models/{model}/release/{word}")
    def steer_rollout(
        model: Model, word: Literal["pause", "resume", "abort", "promote"]
    ) -> RolloutView:
        """Steer the release under way; it is in force when this returns. The body is ``{}``."""
        words = {
            "pause": service.rollouts.pause,
            "resume": service.rollouts.resume,
            "abort": service.rollouts.abort,
            "promote": service.rollouts.promote,
        }
        return words[word](model)

    @router.post("/models/{model}/rollback")
    def rollback(model: Model, body: RollbackRequest) -> Released:
        """Move the traffic back; it is in force when this returns."""
        return service.rollback(model, body.version)

    @router.post("/models/{model}/versions/{version}/unload")
    def unload(model: Model, version: Number) -> Unloaded:
        """Drain a version without weight and take it out of the engine. The body is ``{}``."""
        return service.unload(model, version)

    return router


async def _receive(request: Request, archive: FilePath, max_bytes: int) -> None:
    """Write the body to ``archive``; 413 as soon as it is known to be over ``max_bytes``."""
    too_large = HTTPException(413, f"an archive may have {max_bytes} bytes; this one has more")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    received = 0
    try:
        async with await anyio.open_file(archive, "wb") as file:
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise too_large
                await file.write(chunk)
    except ClientDisconnect as error:
        raise HTTPException(400, f"the upload was cut off after {received} bytes") from error


def _refuse_foreign(request: Request) -> None:
    """No web page that the user visits may talk to this service: not by a name that resolves to
    loopback, not from another origin, and not with a form."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if host not in _LOOPBACK:
        raise HTTPException(403, f"this service answers to {', '.join(_LOOPBACK)}, not to {host}")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers["host"]:
        raise HTTPException(403, f"requests from {origin} are refused")
    if request.method == "POST":
        sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = _BYTES if request.url.path == "/versions" else _JSON
        if sent != wanted:
            raise HTTPException(415, f"the content type must be {wanted}, not {sent or 'none'}")


def _error(status: int, code: str, message: str) -> JSONResponse:
    view = ErrorView(error=ErrorBody(code=code, message=message))
    return JSONResponse(view.model_dump(), status_code=status)


def _on_vlserve_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VlserveError)
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return _error(status, error_code(type(error)), str(error))


def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
    )
    return _error(422, "request_invalid", wrong)


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    status, detail = getattr(error, "status_code", 500), getattr(error, "detail", str(error))
    codes: Mapping[int, str] = {
        400: "upload_cut_off",
        403: "forbidden",
        404: "not_found",
        405: "method_not_allowed",
        413: "too_large",
        415: "unsupported_media_type",
    }
    message = detail if status not in (404, 405) else f"no {request.method} {request.url.path}"
    return _error(status, codes.get(status, "error"), message)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    logger.exception("%s %s", request.method, request.url.path, exc_info=error)
    return _error(
        500, "internal_error", f"{type(error).__name__}: {error}; the control log has more"
    )


def main() -> int:
    """Run until told to stop. Exit code 1, with one line, when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every look at the engine
    try:
        settings = load_settings()
        engine = TorchServe(endpoints(settings), settings.engine)
        control = assemble(settings, engine, EnvoyGateway(settings))
    except VlserveError as error:
        print(error, file=sys.stderr)
        return 1
    app = create_app(control, settings.control.max_archive_bytes)
    describe_predictions(app, settings.folder("handlers"), settings.gateway_url)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=settings.control.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
