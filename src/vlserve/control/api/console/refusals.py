"""What the console answers where a request is refused or fails: a page, or JSON to a script."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute

from vlserve.control.api.console.access import (
    TOKEN_HEADER,
    ForeignForm,
    NoSession,
    language_of,
)
from vlserve.control.api.console.rendering import page
from vlserve.control.api.console.texts import texts_in
from vlserve.control.api.errors import error_answer, status_of, what_is_wrong
from vlserve.errors import RoleMissing, VlserveError

MESSAGE = "message.html.j2"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ConsoleRoute(APIRoute):
    """A path of the console; its errors are pages."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except NoSession:
                return _refused(request, 401, "no_session", "how_to_enter", "login.html.j2")
            except ForeignForm:
                return _refused(request, 403, "refused", "foreign_form")
            except RoleMissing as error:
                heading = texts_in(language_of(request))("refused")
                return _answer(request, 403, heading, str(error))
            except VlserveError as error:
                return _failed(request, status_of(error), str(error))
            except RequestValidationError as error:
                return _failed(request, 422, what_is_wrong(error))
            except HTTPException as error:
                return _failed(request, error.status_code, str(error.detail))

        return answer


def _refused(
    request: Request, status: int, heading: str, message: str, template: str = MESSAGE
) -> Response:
    texts = texts_in(language_of(request))
    return _answer(request, status, texts(heading), texts(message), template)


def _failed(request: Request, status: int, message: str) -> Response:
    return _answer(request, status, texts_in(language_of(request))("not_done"), message)


def _answer(
    request: Request, status: int, heading: str, message: str, template: str = MESSAGE
) -> Response:
    if TOKEN_HEADER in request.headers:
        return error_answer(status, message)
    values = {"heading": heading, "message": message, "back": "/console/"}
    return page(template, language_of(request), values, status)
