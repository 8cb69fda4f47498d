"""Errors as HTTP answers: one status for each class of error, one JSON shape for all."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vlserve.control.domain import MODEL_NAME_RULE
from vlserve.control.wire.views import ErrorBody, ErrorView
from vlserve.errors import (
    ArchiveError,
    ArchiveNotFound,
    ArchiveTooSlow,
    CaptureUnwritable,
    ControlBusy,
    EngineNotRun,
    EngineUnavailable,
    GatewayRefused,
    LedgerDamaged,
    LedgerLost,
    LedgerUnwritable,
    LoadFailed,
    ModelNotFound,
    NamedKeysError,
    NoRelease,
    NothingToRollBackTo,
    NotReady,
    NotUnloaded,
    ObservationInvalid,
    ObservationsTooMany,
    ObservationsUnwritable,
    ObservationTooLong,
    OnAnotherEngine,
    PairNotFound,
    ReleaseUnderWay,
    RoleMissing,
    SettingsError,
    StillServing,
    StoreUnwritable,
    TooManyActs,
    TuningInvalid,
    Unauthorized,
    UploadCutOff,
    UrlNotAllowed,
    VerdictDiffers,
    VerdictUnanswerable,
    VersionConflict,
    VersionNotFound,
    VlserveError,
)

STATUS: Mapping[type[VlserveError], int] = {
    UploadCutOff: 400,
    Unauthorized: 401,
    RoleMissing: 403,
    TooManyActs: 429,
    ModelNotFound: 404,
    VersionNotFound: 404,
    ArchiveTooSlow: 504,
    ArchiveNotFound: 404,
    PairNotFound: 404,
    VersionConflict: 409,
    NotReady: 409,
    StillServing: 409,
    OnAnotherEngine: 409,
    NotUnloaded: 409,
    NothingToRollBackTo: 409,
    ReleaseUnderWay: 409,
    NoRelease: 409,
    VerdictDiffers: 409,
    ObservationTooLong: 413,
    ObservationsTooMany: 413,
    NamedKeysError: 409,
    SettingsError: 422,
    VerdictUnanswerable: 422,
    ObservationInvalid: 422,
    TuningInvalid: 422,
    UrlNotAllowed: 422,
    EngineNotRun: 422,
    ArchiveError: 422,
    LoadFailed: 422,
    ControlBusy: 503,
    EngineUnavailable: 503,
    GatewayRefused: 503,
    LedgerUnwritable: 503,
    StoreUnwritable: 503,
    CaptureUnwritable: 503,
    ObservationsUnwritable: 503,
    LedgerDamaged: 503,
    LedgerLost: 503,
}

HTTP_CODES: Mapping[int, tuple[str, str]] = {
    400: ("body_unreadable", "The body is not JSON in UTF-8, or is nested too deeply."),
    403: ("forbidden", "The request comes from a web page or names another host."),
    404: ("not_found", "The control service has no such path."),
    405: ("method_not_allowed", "The path is there, the method is not."),
    413: (
        "too_large",
        "The archive is larger than `control.max_archive_bytes`, or another body than 1 MiB.",
    ),
    415: ("unsupported_media_type", "The content type is not the one that the path takes."),
    422: ("request_invalid", "A path, query or body does not have the form of the API page."),
    499: ("not_begun", "The caller went away before its request was begun; nothing was done."),
    500: ("internal_error", "A bug; the control log has more."),
}
"""HTTP status -> code and meaning, of what is refused before the service is asked, and of bugs."""

logger = logging.getLogger(__name__)

_SHOWN_CHARS = 50


def answer_errors(app: FastAPI) -> None:
    """Make ``app`` answer every error with an ErrorView."""
    app.add_exception_handler(VlserveError, _on_vlserve_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


def error_answer(status: int, message: str) -> JSONResponse:
    """Return the answer to a request that is refused before the service is asked."""
    if status == 401:
        return _error(status, Unauthorized.code, message, {"WWW-Authenticate": "Bearer"})
    return _error(status, HTTP_CODES[status][0] if status in HTTP_CODES else "error", message)


def _error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    view = ErrorView(error=ErrorBody(code=code, message=message))
    return JSONResponse(view.model_dump(), status_code=status, headers=headers)


def status_of(error: VlserveError) -> int:
    """Return the HTTP status that answers an error."""
    return next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)


def what_is_wrong(error: RequestValidationError) -> str:
    """Say what is wrong with a request, in the caller's words."""
    return "; ".join(_what_is_wrong(item) for item in error.errors())


def _on_vlserve_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VlserveError)
    return _error(status_of(error), type(error).code, str(error))


def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _error(422, HTTP_CODES[422][0], what_is_wrong(error))


def _what_is_wrong(item: Mapping[str, Any]) -> str:
    """Say what is wrong with one part of a request, in the caller's words: at most 50 characters
    of what was sent."""
    place, message = item["loc"], item["msg"].removeprefix("Value error, ")
    if place[0] == "body":
        return f"{'.'.join(map(str, place))}: {message}"
    value = repr(item["input"])
    value = value if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]}…"
    if place == ("path", "model"):
        return f"no model is called {value}: {MODEL_NAME_RULE}"
    return f"{place[-1]} {value}: {message}"


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    status, detail = getattr(error, "status_code", 500), getattr(error, "detail", str(error))
    message = detail
    if status in (404, 405):
        message = f"no {request.method} {request.url.path}"
    elif status == 400:
        nested = isinstance(error.__cause__, RecursionError)
        message = f"the body is {'nested too deeply' if nested else 'not JSON in UTF-8'}"
    return error_answer(status, message)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    logger.exception("%s %s", request.method, request.url.path, exc_info=error)
    message = f"{type(error).__name__}: {error}; the control log has more"
    return _error(500, HTTP_CODES[500][0], message)
