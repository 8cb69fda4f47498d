"""TorchServe's management API over the control service, for scripts that were written for it: its
paths below /torchserve, its parameters, statuses and bodies.

A new name is registered and gets all traffic, as TorchServe does; a further version gets none until
it is made the default one. https://pytorch.org/serve/management_api.html
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from vlserve.control.api import torchserve_views as views
from vlserve.control.api.access import TORCHSERVE
from vlserve.control.api.threads import Threads
from vlserve.control.api.torchserve_errors import Refused, TorchServeRoute
from vlserve.control.domain import ModelStatus, VersionStatus
from vlserve.control.lifecycle.url_registration import WantedServing
from vlserve.control.outcomes import Registration
from vlserve.control.service import ControlService
from vlserve.control.wire.torchserve import (
    RegisterParameters,
    Said,
    VersionDescription,
)
from vlserve.errors import ModelNotFound, SettingsError
from vlserve.settings import Settings

PROCESSING = "Processing worker updates..."
MAX_LISTED = 1000

Name = Annotated[str, Path(max_length=256)]
Number = Annotated[str, Path(max_length=32)]
Workers = Annotated[int | None, Query(ge=0, le=1024)]


def torchserve_routes(service: ControlService, threads: Threads, settings: Settings) -> APIRouter:
    """Return the paths below /torchserve; Door has judged the key and the size of the body."""
    router = APIRouter(prefix=TORCHSERVE, route_class=TorchServeRoute, tags=["torchserve"])
    describe = partial(views.described, settings=settings.engine)
    first_release = asyncio.Lock()

    async def model_of(name: str) -> ModelStatus:
        try:
            return await threads.look(partial(service.model, name))
        except ModelNotFound as error:
            model = views.formerly_called(await threads.look(service.models), name)
            if model is None:
                raise ModelNotFound(f"Model not found: {name}") from error
            return model

    async def description_of(version: VersionStatus, customized: bool) -> VersionDescription:
        if not customized:
            return describe(version)
        if version.manifest.adopted is None:
            return describe(version, metadata=views.own_metadata(version))
        question = partial(service.trials.describe_handle, version)
        return describe(version, metadata=await threads.look(question))

    @router.get("/models")
    async def list_models(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100,
        next_page_token: Annotated[int, Query(ge=0)] = 0,
    ) -> JSONResponse:
        """List the models that have a loaded version, and the archive of the default one."""
        models = await threads.look(service.models)
        return _answer(views.listed(models, limit, next_page_token))

    @router.get("/models/{name}", response_model=list[VersionDescription])
    async def describe_default(name: Name, customized: bool = False) -> JSONResponse:
        """Describe the default version: the one with the traffic, else the newest."""
        version = views.default_of(await model_of(name))
        return _answers([await description_of(version, customized)])

    @router.get("/models/{name}/all", response_model=list[VersionDescription])
    async def describe_all(name: Name, customized: bool = False) -> JSONResponse:
        """Describe every version that is loaded, or being loaded."""
        versions = views.registered(await model_of(name))
        return _answers([await description_of(each, customized) for each in versions])

    @router.get("/models/{name}/{version}", response_model=list[VersionDescription])
    async def describe_version(
        name: Name, version: Number, customized: bool = False
    ) -> JSONResponse:
        """Describe one version."""
        status = views.version_of(await model_of(name), version)
        return _answers([await description_of(status, customized)])

    @router.post("/models", response_model=Said)
    async def register(
        request: Request, parameters: Annotated[RegisterParameters, Query()]
    ) -> JSONResponse:
        """Register an archive and load it; of a new name, give it all traffic. The parameters may
        also come as a JSON body. It is loaded when this returns."""
        parameters = await _with_body(request, parameters)
        _refuse_what_is_not_ours(parameters, settings)
        serving = WantedServing(
            parameters.initial_workers or None, parameters.batch_size, parameters.max_batch_delay
        )
        with threads.admitted_load():
            work = partial(service.by_url.register, parameters.url, serving, parameters.model_name)
            registration = await threads.load(request, work)
        async with first_release:  # of two versions of a new name, one gets the traffic
            model = await model_of(registration.model)
            if model.stable is None:
                release = partial(service.release, registration.model, registration.version)
                await threads.move_traffic(request, release)
        if parameters.initial_workers and not parameters.synchronous:
            return _answer(Said(status=PROCESSING), 202)
        version = views.version_of(model, str(registration.version))
        workers = describe(version).min_workers
        return _answer(Said(status=_said_of(registration, workers)))

    @router.put("/models/{name}/{version}/set-default", response_model=Said)
    async def set_default(request: Request, name: Name, version: Number) -> JSONResponse:
        """Give one version all traffic, at once: `vlserve release --now`."""
        status = views.releasable(await model_of(name), version)
        carry_out: Callable[..., Any] = threads.load
        if await threads.look(partial(service.is_loaded, *status.key)):
            carry_out = threads.move_traffic
        await carry_out(request, partial(service.release, *status.key))
        message = f'Default version successfully updated for model "{name}" to "{version}"'
        return _answer(Said(status=message))

    @router.put("/models/{name}", response_model=Said)
    async def scale(
        name: Name,
        min_worker: Workers = None,
        max_worker: Workers = None,
        synchronous: bool = False,
    ) -> JSONResponse:
        """See that the default version has this many workers."""
        version = views.default_of(await model_of(name))
        return _scaled(describe(version), min_worker, max_worker, synchronous)

    @router.put("/models/{name}/{version}", response_model=Said)
    async def scale_version(
        name: Name,
        version: Number,
        min_worker: Workers = None,
        max_worker: Workers = None,
        synchronous: bool = False,
    ) -> JSONResponse:
        """See that a version has this many workers: how many is settled when it is loaded."""
        status = views.version_of(await model_of(name), version)
        return _scaled(describe(status), min_worker, max_worker, synchronous)

    @router.delete("/models/{name}", response_model=Said)
    async def unregister_default(request: Request, name: Name) -> JSONResponse:
        """Unload the default version, if it has no traffic."""
        return await _unregister(request, views.default_of(await model_of(name)))

    @router.delete("/models/{name}/{version}", response_model=Said)
    async def unregister(request: Request, name: Name, version: Number) -> JSONResponse:
        """Unload a version without traffic: `vlserve unload`. Its archive stays."""
        return await _unregister(request, views.version_of(await model_of(name), version))

    async def _unregister(request: Request, version: VersionStatus) -> JSONResponse:
        status = await threads.drain(request, partial(service.unload, *version.key))
        if status.state.out:
            return _answer(Said(status=f'Model "{version.model}" unregistered'))
        return _answer(Said(status=f'Model "{version.model}" is draining'), 202)

    @router.options("/models")
    @router.options("/models/{rest:path}", include_in_schema=False)
    @router.options("/", include_in_schema=False)
    @router.options("", include_in_schema=False)
    @router.get("/api-description")
    async def describe_api(request: Request) -> JSONResponse:
        """Return the OpenAPI description of these paths."""
        page = request.app.openapi()
        own = {path: what for path, what in page["paths"].items() if path.startswith(TORCHSERVE)}
        return JSONResponse({**page, "paths": own})

    @router.api_route(
        "/{rest:path}",
        methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"],
        include_in_schema=False,
    )
    async def nothing_else(rest: str) -> JSONResponse:
        """Say what does here what TorchServe has another call for."""
        raise _elsewhere(rest, settings)

    return router


def _answer(view: BaseModel, status: int = 200) -> JSONResponse:
    return JSONResponse(
        view.model_dump(by_alias=True, exclude_none=True, mode="json"), status_code=status
    )


def _answers(descriptions: Sequence[VersionDescription]) -> JSONResponse:
    return JSONResponse(
        [each.model_dump(by_alias=True, exclude_none=True, mode="json") for each in descriptions]
    )


async def _with_body(request: Request, query: RegisterParameters) -> RegisterParameters:
    """Return the parameters of a JSON body, where there is one; else the query's."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body or kind != "application/json":
        return _with_url(query)
    try:
        return _with_url(RegisterParameters.model_validate(json.loads(body)))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(wrong) from error
    except (ValueError, RecursionError) as error:
        raise SettingsError("the body is not JSON") from error


def _with_url(parameters: RegisterParameters) -> RegisterParameters:
    if not parameters.url:
        raise SettingsError("Parameter url is required.")
    return parameters


def _refuse_what_is_not_ours(parameters: RegisterParameters, settings: Settings) -> None:
    if parameters.handler:
        raise SettingsError(
            "a handler is part of the archive: `vlserve adopt --handler` makes one with it"
        )
    most_s = settings.engine.response_timeout_s
    if parameters.response_timeout is not None and parameters.response_timeout > most_s:
        raise SettingsError(
            f"response_timeout is {most_s} s for versions that say none of their own: set "
            "engine.response_timeout_s"
        )


def _said_of(registration: Registration, workers: int) -> str:
    name, version = registration.model, registration.version
    remark = f"; not as asked: {registration.untuned}" if registration.untuned else ""
    return f'Model "{name}" Version: {version} registered with {workers} initial workers{remark}'


def _scaled(
    version: VersionDescription, least: int | None, most: int | None, synchronous: bool
) -> JSONResponse:
    least = 1 if least is None else least
    if most is not None and most < least:
        raise SettingsError("max_worker cannot be less than min_worker.")
    workers = version.min_workers
    if workers < least or (most is not None and workers > most):
        name, number = version.model_name, version.model_version
        call = f"{TORCHSERVE}/models?url={version.model_url}&initial_workers={least}"
        raise Refused(
            501,
            f"{name} {number} has {workers} workers until it is loaded anew: `vlserve unload "
            f"{name} {number}`, then POST {call}; engine.workers is of all others",
        )
    if not synchronous:
        return _answer(Said(status=PROCESSING), 202)
    return _answer(Said(status=f"Workers scaled to {workers} for model: {version.model_name}"))


def _elsewhere(path: str, settings: Settings) -> Refused:
    """Return why a path is not answered."""
    first, _, _ = path.partition("/")
    metrics = f"http://127.0.0.1:{settings.gateway.metrics_port}/stats/prometheus"
    engine = f"http://127.0.0.1:{settings.engine.base_port + 2}/metrics"
    reasons = {
        "workflows": "vlserve runs no workflows: ask their models one after the other",
        "token": "vlserve makes no tokens: gateway.api_keys and control.key are its keys",
        "metrics": f"the gateway's metrics are at {metrics}, the engine's at {engine}",
    }
    if first in reasons:
        return Refused(501, reasons[first])
    if first == "models":
        return Refused(405, "Requested method is not allowed, please refer to API document.")
    return Refused(404, "Requested resource is not found, please refer to API document.")
