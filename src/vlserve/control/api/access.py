"""Which requests the control service answers: those with a key, and none that a web page sends.

Everything is decided by the headers, before a byte of the body is read.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from fastapi import HTTPException
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlserve.control import caller
from vlserve.control.api.callers import Callers
from vlserve.control.api.console.access import COOKIE
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.errors import error_answer
from vlserve.control.api.roles import HOLDER
from vlserve.control.named_keys import Holder
from vlserve.settings_sections import ControlSettings
from vlserve.settings_values import is_loopback

JSON, BYTES = "application/json", "application/octet-stream"
JSON_LINES = "application/x-ndjson"
UPLOAD_PATH = "/versions"
OBSERVATIONS_PATH = re.compile(r"/models/[^/]+/observations")
MAX_JSON_BYTES = 1024 * 1024
"""Of every body but an archive."""
TORCHSERVE = "/torchserve"
"""Below it are TorchServe's management calls, whose clients send any content type, or none."""
CONSOLE = "/console/"
"""Its pages ask for the cookie of a session instead of the key; see `console.access`."""
CONSOLE_UPLOAD_PATH = f"{CONSOLE}versions"
CONSOLE_LOGIN_PATH = f"{CONSOLE}login"
MAX_LOGIN_BYTES = 4096
"""Of a form with a key, which anybody may send."""
CONSOLE_TRIAL_PATH = re.compile(rf"{CONSOLE}models/[^/]+/try")
MAX_TRIAL_BYTES = 32 * 1024 * 1024
"""Of a request that the console sends to a version."""
OPEN_PATHS = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/")
"""The API pages and what they are made of: they tell nothing of what is served."""

KEY_SCHEME = HTTPBearer(
    scheme_name="key",
    description="A key that `vlserve keys add` made, or, on the machine of the stack, the contents "
    "of `control.key` in the folder `state_dir`, which its owner alone can read.",
    auto_error=False,  # it stands on the page; Door has judged the key before
)

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(?::\d{1,5})?", re.I | re.A)
_SHOWN_CHARS = 50


@dataclass(frozen=True)
class Hosts:
    """The names by which the service is asked. A page of another site can have a name that resolves
    to its address, but no address of its own: so of those any is taken where callers of other
    machines are.

    ``names``: in lower case. ``addresses``: whether the service listens beyond loopback.
    """

    names: frozenset[str]
    addresses: bool

    @classmethod
    def of(cls, settings: ControlSettings) -> Self:
        names = {name.lower() for name in settings.names}
        return cls(frozenset({*_LOOPBACK, *names}), not is_loopback(settings.host))

    def allow(self, host: str) -> bool:
        """Return whether a Host header names the service."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        return match[1].lower() in self.names or (self.addresses and _is_address(match[1]))

    def __str__(self) -> str:
        others = ("an address",) if self.addresses else ()
        return " or ".join((*_LOOPBACK, *sorted(self.names.difference(_LOOPBACK)), *others))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    message: str


class Door:
    """ASGI middleware that refuses what `refusal` refuses, and bodies that are too large. It
    tells the routes who calls, and the history the name of the key."""

    def __init__(
        self, app: ASGIApp, callers: Callers, sessions: Sessions, settings: ControlSettings
    ) -> None:
        self._app = app
        self._callers = callers
        self._sessions = sessions
        self._hosts = Hosts.of(settings)
        self._max_archive_bytes = settings.max_archive_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(scope["path"])
        holder = self._holder(scope, headers)
        problem = refusal(
            scope["method"], scope["path"], headers, holder is not None, self._hosts
        ) or _too_large(headers, limit)
        if problem is not None:
            await error_answer(problem.status, problem.message)(scope, receive, send)
            return
        scope[HOLDER] = holder
        with caller.known_by(holder.name if holder else ""):
            await self._app(scope, _Counted(receive, limit), _unframed(send))

    def _holder(self, scope: Scope, headers: Headers) -> Holder | None:
        """Return whose key a request carries; on pages of the console, whose session."""
        if scope["path"].startswith(CONSOLE):
            session = self._sessions.find(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))
            return session.holder if session else None
        values = headers.getlist("authorization")
        scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        return self._callers.holder_of(key.strip(), scope) if scheme.lower() == "bearer" else None

    def _limit(self, path: str) -> int:
        """Return how many bytes the body of a request to ``path`` may have."""
        if path in (UPLOAD_PATH, CONSOLE_UPLOAD_PATH):
            return self._max_archive_bytes
        if path == CONSOLE_LOGIN_PATH:
            return MAX_LOGIN_BYTES
        return MAX_TRIAL_BYTES if CONSOLE_TRIAL_PATH.fullmatch(path) else MAX_JSON_BYTES


def refusal(
    method: str, path: str, headers: Headers, has_key: bool, names: Hosts
) -> Refusal | None:
    """Return why this request is refused by its headers; None where it is not.

    No web page that the user visits may talk to the service: not by a name that resolves to
    loopback, not from another origin, and not with a form.

    Args:
        has_key: whether it carries a key that is in force.
        names: those by which the service is asked.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not names.allow(hosts[0]):
        text = " and ".join(repr(host[:_SHOWN_CHARS]) for host in hosts) or "none"
        return Refusal(403, f"the Host must be {names}, not {text} (control.names adds one)")
    for origin in headers.getlist("origin"):
        if origin.lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
            return Refusal(403, f"requests from {origin[:_SHOWN_CHARS]!r} are refused")
    if path.startswith(CONSOLE) or (method in ("GET", "HEAD") and _is_open(path)):
        return None
    if not has_key:
        return Refusal(
            401,
            "the control service asks for a key: send `Authorization: Bearer KEY` with one that "
            "`vlserve keys add` made and nobody revoked, or, on the machine of the stack, with the "
            "contents of control.key in its state_dir (.vlserve)",
        )
    if method == "POST" and not path.startswith(f"{TORCHSERVE}/"):
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        expected = _content_type(path)
        if content_type != expected:
            value = repr(content_type[:_SHOWN_CHARS]) if content_type else "none"
            return Refusal(415, f"the content type must be {expected}, not {value}")
    return None


def _content_type(path: str) -> str:
    if path == UPLOAD_PATH:
        return BYTES
    return JSON_LINES if OBSERVATIONS_PATH.fullmatch(path) else JSON


def _is_open(path: str) -> bool:
    return any(path == each or (each[-1] == "/" and path.startswith(each)) for each in OPEN_PATHS)


def _too_large(headers: Headers, limit: int) -> Refusal | None:
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        return Refusal(413, _over(limit))
    return None


def _over(limit: int) -> str:
    return f"this body may have {limit} bytes, and it has more"


class _Counted:
    """Receives a body, and refuses it once it is longer than it may be."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise HTTPException(413, _over(self._limit))
        return message


def _unframed(send: Send) -> Send:
    """Keep pages of others from showing ours in a frame, where a click may be stolen."""

    async def send_unframed(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
        await send(message)

    return send_unframed
