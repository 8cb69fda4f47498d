"""Which requests the control service answers: those with its key, and none that a web page sends.

Everything is decided by the headers, before a byte of the body is read.
"""

import hmac
import re
from dataclasses import dataclass

from fastapi import HTTPException
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlserve.control.api.errors import error_answer

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
CONSOLE_TRIAL_PATH = re.compile(rf"{CONSOLE}models/[^/]+/try")
MAX_TRIAL_BYTES = 32 * 1024 * 1024
"""Of a request that the console sends to a version."""
OPEN_PATHS = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/")
"""The API pages and what they are made of: they tell nothing of what is served."""

KEY_SCHEME = HTTPBearer(
    scheme_name="key",
    description="The contents of `control.key` in the folder `state_dir`, which the owner of the "
    "stack alone can read.",
    auto_error=False,  # it stands on the page; Door has judged the key before
)

_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?", re.IGNORECASE | re.ASCII)
_SHOWN_CHARS = 50


@dataclass(frozen=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    message: str


class Door:
    """ASGI middleware that refuses what `refusal` refuses, and bodies that are too large."""

    def __init__(self, app: ASGIApp, key: str, max_archive_bytes: int) -> None:
        self._app = app
        self._key = key
        self._max_archive_bytes = max_archive_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(scope["path"])
        refused = refusal(scope["method"], scope["path"], headers, self._key) or _too_large(
            headers, limit
        )
        if refused is not None:
            await error_answer(refused.status, refused.message)(scope, receive, send)
            return
        await self._app(scope, _Counted(receive, limit), _unframed(send))

    def _limit(self, path: str) -> int:
        """Return how many bytes the body of a request to ``path`` may have."""
        if path in (UPLOAD_PATH, CONSOLE_UPLOAD_PATH):
            return self._max_archive_bytes
        return MAX_TRIAL_BYTES if CONSOLE_TRIAL_PATH.fullmatch(path) else MAX_JSON_BYTES


def refusal(method: str, path: str, headers: Headers, key: str) -> Refusal | None:
    """Return why this request is refused by its headers; None where it is not.

    No web page that the user visits may talk to the service: not by a name that resolves to
    loopback, not from another origin, and not with a form.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        named = " and ".join(repr(host[:_SHOWN_CHARS]) for host in hosts) or "none"
        return Refusal(403, f"the Host must be 127.0.0.1, localhost or [::1], not {named}")
    for origin in headers.getlist("origin"):
        if origin.lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
            return Refusal(403, f"requests from {origin[:_SHOWN_CHARS]!r} are refused")
    if path.startswith(CONSOLE) or (method in ("GET", "HEAD") and _is_open(path)):
        return None
    if not _has_key(headers, key):
        return Refusal(
            401,
            "the control service asks for its key: send `Authorization: Bearer KEY` with the "
            "contents of control.key in the stack's state_dir (.vlserve)",
        )
    if method == "POST" and not path.startswith(f"{TORCHSERVE}/"):
        sent = headers.get("content-type", "").partition(";")[0].strip().lower()
        content_type = _content_type(path)
        if sent != content_type:
            shown = repr(sent[:_SHOWN_CHARS]) if sent else "none"
            return Refusal(415, f"the content type must be {content_type}, not {shown}")
    return None


def _content_type(path: str) -> str:
    if path == UPLOAD_PATH:
        return BYTES
    return JSON_LINES if OBSERVATIONS_PATH.fullmatch(path) else JSON


def _is_open(path: str) -> bool:
    return any(path == each or (each[-1] == "/" and path.startswith(each)) for each in OPEN_PATHS)


def _has_key(headers: Headers, key: str) -> bool:
    sent = headers.getlist("authorization")
    if len(sent) != 1:
        return False
    scheme, _, offered_key = sent[0].partition(" ")
    same = hmac.compare_digest(offered_key.strip().encode(), key.encode())
    return scheme.lower() == "bearer" and same


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

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
        await send(message)

    return sending
