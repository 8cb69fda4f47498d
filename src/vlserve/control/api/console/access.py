"""Who may use the console: a browser with the cookie of a session; and who may act in it."""

from dataclasses import dataclass

from fastapi import Request

from vlserve.control.api.console.sessions import Session, Sessions
from vlserve.control.api.console.texts import choose_language

COOKIE = "vlserve_console"
LANGUAGE_COOKIE = "vlserve_language"
TOKEN_HEADER = "X-Console-Token"


class NoSession(Exception):
    """A browser without the cookie of a session."""


class ForeignForm(Exception):
    """A request that would act, and has not the token that our pages keep."""


@dataclass(frozen=True)
class Visit:
    """One request of a browser that may read."""

    session: Session
    language: str


def language_of(request: Request) -> str:
    """Return the language of the page that answers a request."""
    cookie = request.cookies.get(LANGUAGE_COOKIE, "")
    return choose_language(
        request.query_params.get("lang", cookie), request.headers.get("accept-language", "")
    )


def visit(sessions: Sessions, request: Request) -> Visit:
    """Return the visit that a request is. NoSession."""
    session = sessions.find(request.cookies.get(COOKIE, ""))
    if session is None:
        raise NoSession
    return Visit(session, language_of(request))


def check_may_act(sessions: Sessions, request: Request, token: str) -> Visit:
    """Return the visit of a request that acts. NoSession, ForeignForm.

    Browsers send an Origin with every form and script that acts; Door has compared it with the
    host.
    """
    visitor = visit(sessions, request)
    if not request.headers.get("origin") or not visitor.session.may_act(token):
        raise ForeignForm
    return visitor
