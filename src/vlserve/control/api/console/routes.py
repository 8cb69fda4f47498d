"""The pages of the console: those that are looked at. What acts is in `actions`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from vlserve.control.api.console import views
from vlserve.control.api.console.access import LANGUAGE_COOKIE, visit
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import security_headers, visitors_page
from vlserve.control.api.console.screens import Screen
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.console.tag_screens import gather
from vlserve.control.api.console.texts import LANGUAGES
from vlserve.control.api.threads import Threads
from vlserve.control.service import ControlService
from vlserve.runtime.manifest import ModelName, Version

STATIC = Path(__file__).with_name("static")
FILES = ("console.css", "console.js", "enter.js", "icon.svg", "try.js")


def pages(service: ControlService, sessions: Sessions, threads: Threads) -> APIRouter:
    """Return the pages; Door has judged the host and the origin of each request."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

    async def show(request: Request, template: str, gather: Callable[[], Screen]) -> Response:
        """Answer with a page for a browser that may read."""
        visitor = visit(sessions, request)
        screen = await threads.look(gather)
        answer = visitors_page(visitor, template, screen)
        if request.query_params.get("lang") in LANGUAGES:
            answer.set_cookie(LANGUAGE_COOKIE, visitor.language, path="/console", samesite="strict")
        return answer

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in FILES:
            return Response(status_code=404)
        return FileResponse(STATIC / name, headers=security_headers())

    @router.get("/")
    async def now(request: Request) -> Response:
        live = {"live": "/console/live/now"}
        return await show(request, "now.html.j2", lambda: {**views.now(service), **live})

    @router.get("/register")
    async def register(request: Request) -> Response:
        return await show(request, "register.html.j2", dict)

    @router.get("/models/{model}")
    async def model(request: Request, model: ModelName) -> Response:
        live = {"live": f"/console/live/models/{model}"}
        return await show(
            request,
            "model.html.j2",
            lambda: {**views.model(service, model), **views.policy(service), **live},
        )

    @router.get("/models/{model}/rollout")
    async def rollout(request: Request, model: ModelName) -> Response:
        live = {"live": f"/console/live/models/{model}/rollout"}
        return await show(
            request,
            "rollout.html.j2",
            lambda: {**views.rollout(service, model), **views.worst_pairs(service, model), **live},
        )

    @router.get("/models/{model}/tags")
    async def tags(request: Request, model: ModelName) -> Response:
        look = partial(gather, service, model)
        return await show(request, "tags.html.j2", look)

    @router.get("/models/{model}/history")
    async def history(request: Request, model: ModelName) -> Response:
        return await show(request, "history.html.j2", partial(views.history, service, model))

    @router.get("/models/{model}/versions/{version}")
    async def version(request: Request, model: ModelName, version: Version) -> Response:
        gather = partial(views.version, service, model, version)
        return await show(request, "version.html.j2", gather)

    return router
