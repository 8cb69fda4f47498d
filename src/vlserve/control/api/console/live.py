"""Live figures of the pages, as server-sent events.

One answer is rendered for all that look at the same page in the same language, and only while
somebody looks.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse

from vlserve.control.api.console import views
from vlserve.control.api.console.access import visit
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import render, security_headers
from vlserve.control.api.console.screens import Screen
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.threads import Threads
from vlserve.control.gateway.recent_requests import KEPT_S
from vlserve.control.service import ControlService
from vlserve.errors import VlserveError
from vlserve.runtime.manifest import ModelName

EVERY_S = KEPT_S
"""How often figures can be new ones."""
MOST_VIEWERS = 50


@dataclass(frozen=True)
class Part:
    """The live part of a page. ``id``: of its element."""

    id: str
    template: str
    gather: Callable[[], Screen]


class LiveParts:
    """The parts as they were last rendered: (path, language) -> HTML."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._rendered: dict[tuple[str, str], tuple[float, str]] = {}
        self._viewers = 0

    def refuse_if_full(self) -> None:
        """Refuse another viewer with 503 where there are `MOST_VIEWERS`."""
        if self._viewers >= MOST_VIEWERS:
            raise HTTPException(503, f"{MOST_VIEWERS} pages follow live figures already")

    async def follow(
        self, path: str, language: str, part: Part, may_look: Callable[[], bool]
    ) -> AsyncIterator[str]:
        """Yield an event each time that the part looks different, as long as the viewer may look.

        The first is as new as the page that follows: an older one would turn it back.
        """
        self._viewers += 1
        last_html, longest_s = "", 0.0
        try:
            while may_look():
                html = await self._render(path, language, part, longest_s)
                longest_s = EVERY_S
                if html != last_html:
                    last_html = html
                    data = json.dumps({"id": part.id, "html": html})
                    yield f"event: part\ndata: {data}\n\n"
                await anyio.sleep(EVERY_S)
        finally:
            self._viewers -= 1

    async def _render(self, path: str, language: str, part: Part, longest_s: float) -> str:
        """Return the part's HTML, less than ``longest_s`` old; as before where it cannot be
        gathered."""
        at, html = self._rendered.get((path, language), (float("-inf"), ""))
        if time.monotonic() - at < longest_s:
            return html
        try:
            html = await self._threads.look(lambda: render(part.template, language, part.gather()))
        except VlserveError:  # the model is gone, or the ledger is: the page itself says so
            return html
        self._rendered[path, language] = (time.monotonic(), html)
        return html


def live(service: ControlService, sessions: Sessions, threads: Threads) -> APIRouter:
    """Return the streams of events."""
    router = APIRouter(prefix="/console/live", include_in_schema=False, route_class=ConsoleRoute)
    parts = LiveParts(threads)

    def stream(request: Request, part: Part) -> StreamingResponse:
        visitor = visit(sessions, request)
        parts.refuse_if_full()

        def may_look() -> bool:  # a key may be revoked meanwhile
            return sessions.find(visitor.session.cookie) is not None

        events = parts.follow(request.url.path, visitor.language, part, may_look)
        return StreamingResponse(events, media_type="text/event-stream", headers=security_headers())

    @router.get("/now")
    async def now(request: Request) -> StreamingResponse:
        return stream(request, Part("now", "now_live.html.j2", lambda: views.now(service)))

    @router.get("/models/{model}")
    async def model(request: Request, model: ModelName) -> StreamingResponse:
        part = Part("model", "model_live.html.j2", lambda: views.model(service, model))
        return stream(request, part)

    @router.get("/models/{model}/rollout")
    async def rollout(request: Request, model: ModelName) -> StreamingResponse:
        part = Part("rollout", "rollout_live.html.j2", lambda: views.rollout(service, model))
        return stream(request, part)

    return router
