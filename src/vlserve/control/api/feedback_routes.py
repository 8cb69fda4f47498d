"""HTTP routes of what people said of shadow pairs, and of the inputs that are kept for that."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from vlserve.control.api.threads import Threads
from vlserve.control.captures import CaptureStatus
from vlserve.control.service import ControlService
from vlserve.control.wire.views import CaptureView, MarkView
from vlserve.runtime.manifest import ModelName
from vlserve.strict_numbers import StrictNumbers
from vlserve_worker.capture import Plan

Model = Annotated[ModelName, Path(examples=["tagger"])]
MIB = 1024 * 1024
MOST_DAYS = 3650
_MOST_MIB = 2**24


class CaptureRequest(StrictNumbers):
    """Which requests of a model are kept, for how long, and how much of them."""

    share: float = Field(gt=0, le=1, description="Of the requests, from 0 to 1.")
    days: float = Field(gt=0, le=MOST_DAYS, description="After which an input is deleted.")
    max_mib: int = Field(ge=1, le=_MOST_MIB, description="Of all inputs of the model, MiB.")


class Marks(BaseModel):
    marks: list[MarkView] = Field(description="Oldest first.")


def feedback_routes(service: ControlService, threads: Threads) -> APIRouter:
    """Return the paths; Door has judged the key and the size of the body."""
    router = APIRouter()

    @router.get("/models/{model}/marks")
    async def marks(model: Model) -> Marks:
        """Which answers of shadow pairs people said are right."""
        records = await threads.look(partial(service.disagreements.marks, model))
        return Marks(marks=[MarkView.model_validate(each) for each in records])

    @router.get("/models/{model}/capture")
    async def capture(model: Model) -> CaptureView:
        """What is kept of the inputs of a model's requests."""
        return _view(await threads.look(partial(service.captures.status, model)))

    @router.post("/models/{model}/capture")
    async def start_capture(model: Model, body: CaptureRequest) -> CaptureView:
        """Keep inputs of a model's requests from now on."""
        plan = Plan(body.share, body.days, body.max_mib * MIB)
        return _view(await threads.look(partial(service.captures.start, model, plan)))

    @router.post("/models/{model}/capture/{word}")
    async def end_capture(model: Model, word: Literal["stop", "purge"]) -> CaptureView:
        """Keep no more inputs; ``purge`` deletes those that are kept. The body is ``{}``."""
        ends = {"stop": service.captures.stop, "purge": service.captures.purge}
        return _view(await threads.look(partial(ends[word], model)))

    return router


def _view(status: CaptureStatus) -> CaptureView:
    plan = status.plan or Plan(0.0, 0.0, 0)
    return CaptureView(
        model=status.model,
        share=plan.share,
        days=plan.days,
        max_bytes=plan.max_bytes,
        inputs=status.inputs,
        bytes=status.bytes,
    )
