"""What a person does on the pages of the console: the verbs, as forms and as an upload."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from vlserve.control.api.console.access import TOKEN_HEADER, check_may_act
from vlserve.control.api.console.forms import (
    Form,
    RollbackForm,
    StartForm,
    VersionForm,
    form_of,
    rollback_form_of,
    start_form_of,
    version_form_of,
)
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.rollbacks import roll_back
from vlserve.control.api.threads import Threads
from vlserve.control.api.uploads import (
    FileName,
    SignatureBytes,
    SignatureSizes,
    register_upload,
)
from vlserve.control.service import ControlService
from vlserve.runtime.manifest import ModelName

Sent = Annotated[Form, Depends(form_of)]
SentVersion = Annotated[VersionForm, Depends(version_form_of)]
SentRollback = Annotated[RollbackForm, Depends(rollback_form_of)]
SentStart = Annotated[StartForm, Depends(start_form_of)]
SEE_OTHER = 303


def actions(service: ControlService, sessions: Sessions, threads: Threads) -> APIRouter:
    """Return what acts; each request carries the token of its session."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

    async def move(request: Request, form: Form, work: Callable[[], Any], page: str) -> Response:
        """Move traffic, then show the page that tells what came of it."""
        check_may_act(sessions, request, form.token)
        await threads.move_traffic(request, work)
        return RedirectResponse(page, SEE_OTHER)

    async def load(
        request: Request, form: VersionForm, model: str, work: Callable[[], Any], page: str
    ) -> Response:
        """Likewise of a version that may have to be loaded first, which takes seconds."""
        check_may_act(sessions, request, form.token)
        is_loaded = await threads.look(partial(service.is_loaded, model, form.version))
        await (threads.move_traffic if is_loaded else threads.load)(request, work)
        return RedirectResponse(page, SEE_OTHER)

    @router.post("/models/{model}/rollback")
    async def rollback(request: Request, model: ModelName, form: SentRollback) -> Response:
        check_may_act(sessions, request, form.token)
        await roll_back(request, service, threads, model, form.version)
        return RedirectResponse(_page(model), SEE_OTHER)

    @router.post("/models/{model}/release")
    async def release(request: Request, model: ModelName, form: SentVersion) -> Response:
        work = partial(service.release, model, form.version)
        return await load(request, form, model, work, _page(model))

    @router.post("/models/{model}/start")
    async def start(request: Request, model: ModelName, form: SentStart) -> Response:
        work = partial(service.rollouts.start, model, form.version, form.changes())
        return await load(request, form, model, work, f"{_page(model)}/rollout")

    @router.post("/models/{model}/{word}")
    async def steer(
        request: Request,
        model: ModelName,
        word: Literal["pause", "resume", "abort", "promote"],
        form: Sent,
    ) -> Response:
        work = partial(getattr(service.rollouts, word), model)
        return await move(request, form, work, f"{_page(model)}/rollout")

    @router.post("/versions")
    async def register(
        request: Request,
        name: FileName = "",
        signature_bytes: SignatureBytes = 0,
        provenance_bytes: SignatureBytes = 0,
        token: Annotated[str, Header(alias=TOKEN_HEADER)] = "",
    ) -> Response:
        """Register the archive in the body, which may begin with its signature; answers with the
        page to show."""
        check_may_act(sessions, request, token)
        sizes = SignatureSizes(signature_bytes, provenance_bytes)
        registration = await register_upload(
            request, service, threads, name, by="console", sizes=sizes
        )
        return JSONResponse({"page": _page(registration.model)})

    return router


def _page(model: str) -> str:
    return f"/console/models/{model}"
