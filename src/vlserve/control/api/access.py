"""Which requests the control service answers: those of local programs, not of web pages."""

from urllib.parse import urlsplit

from fastapi import HTTPException, Request

JSON, BYTES = "application/json", "application/octet-stream"

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def refuse_foreign(request: Request) -> None:
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
        wanted = BYTES if request.url.path == "/versions" else JSON
        if sent != wanted:
            raise HTTPException(415, f"the content type must be {wanted}, not {sent or 'none'}")
