"""The page Disagreements: shadow pairs in which the versions differ, and the marks of people."""

from functools import partial
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from vlserve.control.api.console.access import check_may_act, visit
from vlserve.control.api.console.actions import SEE_OTHER
from vlserve.control.api.console.forms import MarkForm, mark_form_of
from vlserve.control.api.console.pair_screens import Filter, pairs_screen
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import security_headers, visitors_page
from vlserve.control.api.console.screens import Screen
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.threads import Threads
from vlserve.control.service import ControlService
from vlserve.runtime.manifest import MAX_LABEL_CHARS, ModelName

_IMAGES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
"""How a file of each type begins."""

Word = Annotated[str, Query(max_length=MAX_LABEL_CHARS)]


def pairs(service: ControlService, sessions: Sessions, threads: Threads) -> APIRouter:
    """Return the page and what marks a pair."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

    @router.get("/models/{model}/pairs")
    async def look(
        request: Request, model: ModelName, label: Word = "", kind: Word = ""
    ) -> Response:
        visitor = visit(sessions, request)
        screen = await threads.look(partial(_gather, service, model, Filter(label, kind)))
        return visitors_page(visitor, "pairs.html.j2", screen)

    @router.get("/models/{model}/input")
    async def image(
        request: Request, model: ModelName, request_id: Word, field: Word = "image"
    ) -> Response:
        visit(sessions, request)
        return await threads.look(partial(_image, service, model, request_id, field))

    @router.post("/models/{model}/pairs")
    async def mark(
        request: Request, model: ModelName, form: Annotated[MarkForm, Depends(mark_form_of)]
    ) -> Response:
        check_may_act(sessions, request, form.token)
        versions = (form.stable, form.candidate)
        keep = partial(service.disagreements.mark, model, form.request_id, versions)
        await threads.look(partial(keep, form.right, form.right_label))
        query = urlencode({"label": form.label, "kind": form.kind})
        return RedirectResponse(f"/console/models/{model}/pairs?{query}", SEE_OTHER)

    return router


def _gather(service: ControlService, name: str, choice: Filter) -> Screen:
    """Gather what the page shows. ModelNotFound."""
    marks = service.disagreements.marks(name)
    summary_of = partial(service.captures.summary_of, name)
    return pairs_screen(name, service.disagreements.newest(name), marks, choice, summary_of)


def _image(service: ControlService, model: str, request_id: str, field: str) -> Response:
    """Return an image that was kept of a request; 404 for what is none."""
    capture = service.captures.input_of(model, request_id)
    content = capture.images.get(field, b"") if capture else b""
    kind = next((kind for head, kind in _IMAGES.items() if content.startswith(head)), None)
    if kind is None:
        return Response(status_code=404, headers=security_headers())
    return Response(content, media_type=kind, headers=security_headers())
