"""HTTP routes by which rollout tools of others ask the judge, and tell it what another gateway saw.

docs/other-rollout-tools.md shows their calls.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request

from vlserve.control.api.access import JSON_LINES
from vlserve.control.api.threads import Threads
from vlserve.control.judge import Action
from vlserve.control.rollouts.observations import Observation, VersionName
from vlserve.control.rollouts.verdicts import Question, Source
from vlserve.control.service import ControlService
from vlserve.control.wire.rollout_views import ObservationsTaken, VerdictView
from vlserve.errors import VerdictDiffers
from vlserve.runtime.manifest import ModelName

Model = Annotated[ModelName, Path(examples=["tagger"])]

Name = Annotated[VersionName, Query(examples=["2"])]


def _question(
    model: Model,
    since: Annotated[
        str,
        Query(
            max_length=40,
            description="A time (ISO 8601) or a span before now (90s, 30m, 2h, 1d). Left out: "
            "since the candidate became ready, or got another state since; of observations, all "
            "that are kept.",
        ),
    ] = "",
    candidate: Annotated[
        Name | None,
        Query(
            description="Left out: of the rollout under way, whose judge answers; of observations "
            "`candidate`."
        ),
    ] = None,
    stable: Annotated[
        Name | None,
        Query(description="Left out: the model's stable version; of observations `stable`."),
    ] = None,
    source: Annotated[
        Source, Query(description="Whose log is read: the gateway's, or of observations.")
    ] = "gateway",
    weight: Annotated[
        int | None,
        Query(
            ge=1,
            le=99,
            description="The candidate's share of the requests all that time, percent, for the "
            "gate of the sample ratio. Left out: there is no such gate.",
        ),
    ] = None,
) -> Question:
    return Question(model, source, since, candidate or "", stable or "", weight)


Asked = Annotated[Question, Depends(_question)]


def verdict_routes(service: ControlService, threads: Threads) -> APIRouter:
    """Return the paths; Door has judged the key and the size of the body."""
    router = APIRouter()

    @router.get("/models/{model}/verdict")
    async def verdict(question: Asked) -> VerdictView:
        """Whether the candidate may get more traffic, by the same gates as a rollout's."""
        answer = await threads.judge(partial(service.verdicts.answer, question))
        return VerdictView.model_validate(answer)

    @router.post("/models/{model}/verdict/check")
    async def check_verdict(
        question: Asked,
        passing: Annotated[
            list[Action],
            Query(alias="pass", description="The verdicts that are answered with 200."),
        ],
        body: Mapping[str, Any],
    ) -> VerdictView:
        """The verdict as a status, for tools that read nothing else, as Flagger's webhooks do: 200
        where it is one of ``pass``, else 409. Any JSON object is a body."""
        answer = await threads.judge(partial(service.verdicts.answer, question))
        if answer.verdict not in passing:
            raise VerdictDiffers(f"{answer.verdict}: {answer.reason}")
        return VerdictView.model_validate(answer)

    @router.post(
        "/models/{model}/observations",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {JSON_LINES: {"schema": Observation.model_json_schema()}},
            }
        },
    )
    async def observe(request: Request, model: Model) -> ObservationsTaken:
        """Take requests that another gateway split between two versions: one JSON object a line."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise HTTPException(415, f"the body may not be packed, and is {encoding[:50]!r}")
        body = await request.body()
        counts = await threads.look(partial(service.observations.take, model, body))
        return ObservationsTaken(accepted=counts.accepted, repeated=counts.repeated)

    return router
