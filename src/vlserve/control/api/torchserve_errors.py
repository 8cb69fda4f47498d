"""Errors below /torchserve, as TorchServe words them."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from vlserve.control.api.errors import status_of, what_is_wrong
from vlserve.control.wire.torchserve import Failure
from vlserve.errors import (
    ArchiveNotFound,
    LoadFailed,
    ModelNotFound,
    SignatureRefused,
    VersionNotFound,
    VlserveError,
)

_TYPES = {
    400: "BadRequestException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    500: "InternalServerException",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
}
_TYPES_OF_OURS: dict[type[VlserveError], str] = {
    ModelNotFound: "ModelNotFoundException",
    ArchiveNotFound: "ModelNotFoundException",
    VersionNotFound: "ModelVersionNotFoundException",
}


class Refused(Exception):
    """A call that this service does not answer; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TorchServeRoute(APIRoute):
    """A route whose errors have TorchServe's three names."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def respond(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as error:
                return _failure(error.status, str(error))
            except RequestValidationError as error:
                return _failure(400, what_is_wrong(error))
            except VlserveError as error:
                return _failure(_status(error), str(error), _TYPES_OF_OURS.get(type(error)))

        return respond


def _status(error: VlserveError) -> int:
    """Return TorchServe's status of an error: it knows no 422, and a load that fails is a 500,
    but for one that is refused by the signature that was given."""
    if isinstance(error, LoadFailed) and not isinstance(error, SignatureRefused):
        return 500
    status = status_of(error)
    return 400 if status == 422 else status


def _failure(status: int, message: str, kind: str | None = None) -> JSONResponse:
    view = Failure(code=status, type=kind or _TYPES.get(status, _TYPES[500]), message=message)
    return JSONResponse(view.model_dump(), status_code=status)
