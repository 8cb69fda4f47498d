"""What TorchServe's management API says, in its own names: TorchServe 0.12, rest_api of its
documentation. `vlserve.control.api.torchserve` answers it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_URL_CHARS = 2048


class TorchServeView(BaseModel):
    """Written in camel case."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Said(TorchServeView):
    """What came of a call that changes something."""

    status: str


class Failure(TorchServeView):
    """Every answer that is not 2xx."""

    code: int = Field(description="The HTTP status.")
    type: str = Field(description="The name of TorchServe's exception.")
    message: str


class ListedModel(TorchServeView):
    model_name: str
    model_url: str = Field(description="The file name of the archive of the default version.")


class ModelList(TorchServeView):
    next_page_token: str | None = Field(description="Of the next call; left out on the last page.")
    models: tuple[ListedModel, ...]


class WorkerState(TorchServeView):
    """One worker. Its process, its memory and its GPU are the engine's to know, so they stand as
    TorchServe writes what it does not know."""

    id: str
    start_time: str = Field(description="When the version's state changed last; UTC, ISO 8601.")
    status: Literal["READY", "UNLOADING"] = Field(description="UNLOADING: it does not answer yet.")
    memory_usage: int = 0
    pid: int = -1
    gpu: bool = False
    gpu_usage: str = "N/A"


class QueueState(TorchServeView):
    remaining_capacity: int
    pending_requests: int


class VersionDescription(TorchServeView):
    """One version as TorchServe describes it."""

    model_name: str
    model_version: str
    model_url: str = Field(description="The file name of its archive.")
    engine: str = Field(description="Which engine runs it: torchserve or triton.")
    runtime: str = "python"
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: int = Field(description="Milliseconds.")
    response_timeout: int = Field(description="Seconds.")
    startup_timeout: int = Field(description="Seconds.")
    loaded_at_startup: bool = False
    workers: tuple[WorkerState, ...]
    job_queue_status: QueueState
    customized_metadata: Mapping[str, Any] | None = Field(
        default=None,
        description="With `customized=true`: what the archive says of itself; of an adopted one, "
        "what its handler's describe_handle returns.",
    )


Flag = Annotated[bool, BeforeValidator(lambda value: str(value).strip().lower() == "true")]
"""True is "true" in any case, and all else false, as TorchServe reads it."""


class RegisterParameters(BaseModel):
    """Of a registration, from the query or from a JSON body. Names that are not here are passed
    over, as TorchServe does."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(
        default="",
        max_length=MAX_URL_CHARS,
        description="The archive: its file name in the model store, or an address that "
        "`control.allowed_urls` lets in. With `trust`, its signature is read beside it.",
    )
    model_name: str = Field(
        default="", max_length=MAX_URL_CHARS, description="Must be the archive's own, if any."
    )
    handler: str = Field(default="", max_length=MAX_URL_CHARS, description="Refused.")
    initial_workers: int = Field(
        default=0, ge=0, le=256, description="0: as many as the engine's settings say."
    )
    batch_size: int | None = Field(default=None, ge=1, le=1024)
    max_batch_delay: int | None = Field(default=None, ge=0, le=10_000, description="Milliseconds.")
    response_timeout: int | None = Field(
        default=None, ge=1, description="Seconds; not more than `engine.response_timeout_s`."
    )
    synchronous: Flag = Field(
        default=True,
        description="Where it is false, and initial_workers is given, success is answered with "
        "202. The version is loaded by then all the same.",
    )
