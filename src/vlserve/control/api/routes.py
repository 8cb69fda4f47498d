"""The HTTP paths of the control service: requests in, the wire's models out."""

from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from vlserve.control.api.access import BYTES, UPLOAD_PATH
from vlserve.control.api.console.sessions import CODE_S, Sessions
from vlserve.control.api.roles import holder_of
from vlserve.control.api.rollbacks import roll_back
from vlserve.control.api.threads import Threads
from vlserve.control.api.uploads import (
    FileName,
    SignatureBytes,
    SignatureSizes,
    UserName,
    register_upload,
)
from vlserve.control.domain import EngineKind
from vlserve.control.service import ControlService
from vlserve.control.tuning import parse_tuning
from vlserve.control.wire.rollout_views import RolloutView
from vlserve.control.wire.views import (
    ConsoleLink,
    Deleted,
    EventView,
    Health,
    ModelView,
    RefusalView,
    Registered,
    Released,
    TrafficView,
    Unloaded,
)
from vlserve.runtime.manifest import ModelName, Version
from vlserve.strict_numbers import StrictNumbers

Model = Annotated[ModelName, Path(examples=["tagger"])]
Number = Annotated[Version, Path(examples=[2])]

TuningJson = Annotated[
    str,
    Query(
        max_length=4096,
        description="What `vlserve tune` wrote beside the archive; left out: as all versions.",
    ),
]


Engine = Annotated[
    EngineKind,
    Query(
        description="Which engine is to run it; left out: as before, and a new version the stack's "
        "own, or TorchServe where it runs both.",
    ),
]


class ReleaseRequest(StrictNumbers):
    """``now``: all traffic at once; else in steps, judged by serving_config/rollout.yaml, of which
    ``changes`` replaces entries for this release alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"version": 2, "changes": {"weights": [5, 25, 50, 100], "hold_s": 60}}]
        },
    )

    version: Version
    now: bool = False
    changes: dict[str, Any] = Field(default_factory=dict)


class RollbackRequest(StrictNumbers):
    """``version``: null for the stable version before."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": None}]})

    version: Version | None = None


class BatchJobRequest(BaseModel):
    """``out``: the folder of the job's output, an absolute path of this machine."""

    out: str = Field(pattern=r"^/[^\x00]*$", max_length=4096)


class Models(BaseModel):
    models: list[ModelView]


class RecentTraffic(BaseModel):
    traffic: list[TrafficView]


class History(BaseModel):
    events: list[EventView] = Field(description="Oldest first.")


class Refusals(BaseModel):
    refusals: list[RefusalView] = Field(description="By the time of the last.")


def routes(service: ControlService, threads: Threads, sessions: Sessions) -> APIRouter:
    """Return the paths over ``service``; Door has judged the key and the size of the body."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Health:
        """Whether this service answers, and what it sees of the engine and the gateway."""
        return Health.model_validate(await threads.health(service.health))

    @router.get("/models")
    async def models() -> Models:
        """Every model with its versions, states and weights."""
        statuses = await threads.look(service.models)
        return Models(models=[ModelView.model_validate(each) for each in statuses])

    @router.get("/traffic")
    async def traffic() -> RecentTraffic:
        """Rates, latencies and failures of every model in the last 15 minutes."""
        figures = await threads.look(service.traffic)
        return RecentTraffic(
            traffic=[TrafficView.model_validate(each) for each in figures.values()]
        )

    @router.get("/models/{model}")
    async def model(model: Model) -> ModelView:
        """One model with its versions."""
        return ModelView.model_validate(await threads.look(partial(service.model, model)))

    @router.get("/models/{model}/history")
    async def history(model: Model) -> History:
        """Everything that happened to a model."""
        events = await threads.look(partial(service.history, model))
        return History(events=[EventView.model_validate(each) for each in events])

    @router.get("/refusals")
    async def refusals() -> Refusals:
        """Calls that named keys were refused for their role, counted by key, call and model."""
        records = await threads.look(service.refusals.kept)
        return Refusals(refusals=[RefusalView.model_validate(each) for each in records])

    @router.post(
        UPLOAD_PATH,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def register(
        request: Request,
        name: FileName = "",
        tuning: TuningJson | None = None,
        engine: Engine | None = None,
        by: UserName = "",
        signature_bytes: SignatureBytes = 0,
        provenance_bytes: SignatureBytes = 0,
    ) -> Registered:
        """Verify, keep, load and probe the archive in the body; returns when it is ready."""
        service.refuse_engine(engine)
        tuning_record = None if tuning is None else parse_tuning(tuning)
        sizes = SignatureSizes(signature_bytes, provenance_bytes)
        registration = await register_upload(
            request, service, threads, name, tuning_record, engine, by, sizes
        )
        return Registered.model_validate(registration)

    @router.post("/models/{model}/releases")
    async def release(
        request: Request, model: Model, body: ReleaseRequest
    ) -> Released | RolloutView:
        """Move the model's traffic to a version, or begin to; it is in force when this returns."""
        if await threads.look(partial(service.is_loaded, model, body.version)):
            carry_out = threads.move_traffic
        else:
            carry_out = threads.load
        if body.now:
            now = partial(service.release, model, body.version)
            return Released.model_validate(await carry_out(request, now))
        start = partial(service.rollouts.start, model, body.version, body.changes)
        return RolloutView.model_validate(await carry_out(request, start))

    @router.get("/models/{model}/release")
    async def rollout(model: Model) -> RolloutView:
        """The rollout under way, or the last one, with its evidence."""
        latest = await threads.look(partial(service.rollouts.latest, model))
        return RolloutView.model_validate(latest)

    @router.post("/models/{model}/release/{word}")
    async def steer_rollout(
        request: Request, model: Model, word: Literal["pause", "resume", "abort", "promote"]
    ) -> RolloutView:
        """Steer the rollout under way; it is in force when this returns. The body is ``{}``."""
        words = {
            "pause": service.rollouts.pause,
            "resume": service.rollouts.resume,
            "abort": service.rollouts.abort,
            "promote": service.rollouts.promote,
        }
        rollout = await threads.move_traffic(request, partial(words[word], model))
        return RolloutView.model_validate(rollout)

    @router.post("/models/{model}/rollback")
    async def rollback(request: Request, model: Model, body: RollbackRequest) -> Released:
        """Move the traffic back; it is in force when this returns."""
        change = await roll_back(request, service, threads, model, body.version)
        return Released.model_validate(change)

    @router.post("/models/{model}/versions/{version}/unload")
    async def unload(request: Request, model: Model, version: Number) -> Unloaded:
        """Drain a version without weight and take it out of the engine. The body is ``{}``."""
        work = partial(service.unload, model, version)
        return Unloaded.model_validate(await threads.drain(request, work))

    @router.post("/models/{model}/versions/{version}/delete")
    async def delete(request: Request, model: Model, version: Number) -> Deleted:
        """Remove the archive of a retired or failed version. The body is ``{}``."""
        work = partial(service.delete, model, version)
        return Deleted.model_validate(await threads.drain(request, work))

    @router.post("/batch-jobs")
    async def announce_batch_job(body: BatchJobRequest) -> BatchJobRequest:
        """Have the console show how far an offline job is."""
        await threads.look(partial(service.batch_jobs.announce, FilePath(body.out)))
        return body

    @router.post("/console-links")
    async def console_link(request: Request) -> ConsoleLink:
        """Make a link that lets one browser into the console, where it may do what the key of this
        call may. The body is ``{}``."""
        code = sessions.new_code(holder_of(request))
        return ConsoleLink(path=f"/console/enter?code={code}", valid_s=CODE_S)

    return router
