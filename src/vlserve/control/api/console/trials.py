"""The page Try it: a request to one version or two, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from vlserve.control.api.console.access import TOKEN_HEADER, check_may_act, visit
from vlserve.control.api.console.refusals import ConsoleRoute
from vlserve.control.api.console.rendering import DRAWN_HERE, visitors_page
from vlserve.control.api.console.screens import Screen
from vlserve.control.api.console.sessions import Sessions
from vlserve.control.api.console.trial_answers import TrialAnswer, read_answer
from vlserve.control.api.console.trial_forms import TaskSchemas, form_fields
from vlserve.control.api.threads import Threads
from vlserve.control.domain import ModelStatus, VersionStatus
from vlserve.control.service import ControlService
from vlserve.errors import ExtraMissing, VlserveError
from vlserve.extras import require_extras
from vlserve.runtime.headers import API_KEY
from vlserve.runtime.manifest import ModelName, Version
from vlserve.settings import Settings

AT_ONCE = 2
"""Trials that are received and answered at one time; each may have 32 MiB."""
Chosen = Annotated[list[Version], Query(alias="version", min_length=1, max_length=2)]


@dataclass(frozen=True)
class ClientView:
    """How clients ask, for the commands that the page shows, and what a form looks like.

    ``videos``: the engine's workers read videos.
    """

    url: str
    key_header: str
    schemas: TaskSchemas
    videos: bool


def client_view(settings: Settings) -> ClientView:
    """Return how clients of this stack ask."""
    return ClientView(
        settings.gateway_url,
        API_KEY if settings.gateway.api_keys else "",
        TaskSchemas(settings.folder("handlers")),
        _reads_videos(),
    )


def _reads_videos() -> bool:
    try:
        require_extras("video")
    except ExtraMissing:
        return False
    return True


def trials(
    service: ControlService, sessions: Sessions, threads: Threads, clients: ClientView
) -> APIRouter:
    """Return the page and what its form is sent to."""
    router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)
    limiter = CapacityLimiter(AT_ONCE)

    @router.get("/models/{model}/try")
    async def form(request: Request, model: ModelName, version: Version | None = None) -> Response:
        visitor = visit(sessions, request)
        gather = partial(trial_screen, service, clients, model, version)
        screen = await threads.look(gather)
        return visitors_page(visitor, "try.html.j2", screen, images=DRAWN_HERE)

    @router.post("/models/{model}/try")
    async def send(
        request: Request,
        model: ModelName,
        versions: Chosen,
        content_type: Annotated[str, Header()] = "",
        token: Annotated[str, Header(alias=TOKEN_HEADER)] = "",
    ) -> Response:
        """Send the body to each version, and answer with a part of the page."""
        visitor = check_may_act(sessions, request, token)
        async with limiter:  # before the body is read
            body = await request.body()
            ask = partial(_ask_each, service, model, versions, body, content_type)
            answers = await to_thread.run_sync(ask)
        return visitors_page(visitor, "tried.html.j2", {"answers": answers}, images=DRAWN_HERE)

    return router


def trial_screen(
    service: ControlService, clients: ClientView, name: str, version: int | None
) -> Screen:
    """Gather what the page shows: the form of ``version``, of stable where it is None.
    ModelNotFound."""
    model = service.model(name)
    versions = [each for each in model.versions if each.state.routable]
    target = _of_number(versions, version if version is not None else model.stable)
    return {
        "name": name,
        "versions": versions,
        "shown": target,
        "other": _other(model, versions, target),
        "fields": form_fields(clients.schemas.of(target.task), target.manifest) if target else (),
        "gateway": clients.url,
        "key_header": clients.key_header,
        "videos": clients.videos,
    }


def _of_number(versions: Sequence[VersionStatus], number: int | None) -> VersionStatus | None:
    """Return the version of this number, else the newest one; None where none is loaded."""
    newest = versions[-1] if versions else None
    return next((each for each in versions if each.version == number), newest)


def _other(
    model: ModelStatus, versions: Sequence[VersionStatus], target: VersionStatus | None
) -> int | None:
    """Return the version that stands beside ``target`` at first: another one that has weight."""
    others = (each.version for each in versions if each is not target)
    return next((number for number in others if model.weights.get(number)), None)


def _ask_each(
    service: ControlService, model: str, versions: Sequence[int], body: bytes, content_type: str
) -> list[TrialAnswer]:
    """Ask one version after the other, so that none takes the processor from another."""
    return [_ask(service, model, version, body, content_type) for version in versions]


def _ask(
    service: ControlService, model: str, version: int, body: bytes, content_type: str
) -> TrialAnswer:
    try:
        return read_answer(version, service.trials.send(model, version, body, content_type))
    except VlserveError as error:
        return TrialAnswer(version, error=str(error))
