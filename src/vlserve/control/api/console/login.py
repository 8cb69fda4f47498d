"""How a browser gets in: by a link that works once, or by a key on the page that asks for it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from vlserve.control.api.callers import Callers
from vlserve.control.api.console.access import COOKIE, ForeignForm, language_of
from vlserve.control.api.console.forms import KeyForm, key_form_of
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import page
from vlserve.control.api.console.sessions import Session, Sessions
from vlserve.control.api.console.texts import texts_in

UNAUTHORIZED = 401


def login(sessions: Sessions, callers: Callers) -> APIRouter:
    """Return the ways into the console; Door has judged the host and the origin."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

    @router.get("/enter")
    def enter(request: Request, code: str = "") -> Response:
        """Open a session with the code of a link."""
        session = sessions.open(code)
        return _asked(request, "code_used") if session is None else _let_in(request, session)

    @router.get("/login")
    def ask(request: Request) -> Response:
        return page("login.html.j2", language_of(request), {"heading": "", "message": ""})

    @router.post("/login")
    async def sign_in(request: Request, form: Annotated[KeyForm, Depends(key_form_of)]) -> Response:
        """Open a session with a key; what it may do, the session may."""
        if not request.headers.get("origin"):  # a page of another site may sign nobody in
            raise ForeignForm
        holder = callers.holder_of(form.key.strip(), request.scope)
        if holder is None:
            return _asked(request, "wrong_key")
        return _let_in(request, sessions.open_for(holder))

    return router


def _asked(request: Request, why: str) -> Response:
    """Ask for a key, after what did not let anybody in."""
    texts = texts_in(language_of(request))
    values = {"heading": texts("no_session"), "message": texts(why)}
    return page("login.html.j2", language_of(request), values, UNAUTHORIZED)


def _let_in(request: Request, session: Session) -> Response:
    answer = page("enter.html.j2", language_of(request), {"token": session.token})
    answer.set_cookie(
        COOKIE,
        session.cookie,
        path="/console",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer
