"""What the control service says over HTTP, and its client gives back."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vlserve.control.domain import EngineKind, Right, Signer, State
from vlserve.control.tuning import Tuning


class View(BaseModel):
    """Made from the attributes of a domain object. Immutable; unknown fields are ignored, so that
    an older client reads a newer service."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def _signer_text(signer: object) -> object:
    return str(signer) if isinstance(signer, Signer) else signer or ""


SignerText = Annotated[str, BeforeValidator(_signer_text)]


class VersionView(View):
    """One version as the ledger has it, and what the engine said at the last tick."""

    model: str
    version: int
    state: State
    weight: int = Field(description="Share of the model's traffic, percent.")
    reason: str = Field(description="Why it failed, or cannot be loaded again; else empty.")
    task: str
    family: str
    precision: str
    sha256: str = Field(description="Of the archive.")
    registered_at: str
    changed_at: str
    tuning: Tuning | None = Field(
        default=None,
        description="Of its next load; of the last, unless it came since. Null: as all versions.",
    )
    engine: EngineKind = Field(default="torchserve", description="Which engine runs it.")
    signer: SignerText = Field(
        default="",
        description="Name and beginning of the sha256 of the key that signed the archive; empty: "
        "no key of trust.keys is known to have.",
    )
    instead_of: EngineKind | None = Field(
        default=None,
        description="The engine that it was registered for, where this stack does not run it.",
    )
    workers_ready: Mapping[str, int] = Field(
        description="Engine instance -> workers that can answer; instances without it are left out."
    )


class ModelView(View):
    model: str
    stable: int | None = Field(description="The version in force; null before the first release.")
    earlier: tuple[int, ...] = Field(description="Where rollback goes, the next one first.")
    weights: Mapping[int, int]
    versions: tuple[VersionView, ...]


class MarkView(View):
    """Which answer of a shadow pair a person says is right."""

    model: str
    request_id: str
    stable: int
    candidate: int
    right: Right
    label: str = Field(description="The right one; empty where it is not known.")
    marked_at: str
    marked_by: str = Field(default="", description="Name of the key; empty where it is not known.")


class CaptureView(View):
    """What is kept of the inputs of a model's requests."""

    model: str
    share: float = Field(description="Of the requests, from 0 to 1; 0: none any more.")
    days: float = Field(description="After which an input is deleted.")
    max_bytes: int = Field(description="Nothing more is kept beyond it.")
    inputs: int
    bytes: int = Field(description="That the files of the inputs take on the disk.")


class TallyOfTimeView(View):
    """Requests of some time."""

    requests: int
    failed: int = Field(description="Answered with a 5xx, or not at all.")
    p50_ms: float | None = Field(description="Of those that were answered; null without any.")
    p99_ms: float | None


class MinuteView(TallyOfTimeView):
    start: int = Field(description="Unix time, s.")


class VersionTrafficView(TallyOfTimeView):
    version: int


class TrafficView(TallyOfTimeView):
    """One model's requests of the last 15 minutes, as the gateway logged them."""

    model: str
    per_second: float = Field(description="Over the last whole minute.")
    minutes: tuple[MinuteView, ...] = Field(description="Oldest first; the last is under way.")
    versions: tuple[VersionTrafficView, ...]
    estimated: bool = Field(description="Counted on some of the requests, and scaled up.")


class EventView(View):
    """One line of the append-only history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tagger",
                    "version": 1,
                    "at": "2026-01-31T09:30:00.000+00:00",
                    "kind": "released",
                    "detail": {"previous": None, "weights": {"1": 100}},
                }
            ]
        }
    )

    at: str
    model: str
    version: int | None
    kind: str
    detail: Mapping[str, Any]


class RefusalView(View):
    """Calls of one kind that a named key was refused for its role."""

    key: str = Field(description="Name of the key.")
    call: str = Field(description="Method and path.")
    needs: str = Field(description="The roles that the call needs.")
    model: str = Field(description="The model that it named; empty where none is known.")
    first_at: str
    last_at: str
    times: int


class Registered(View):
    """``already_registered``: the same bytes were there before, and nothing was loaded.
    ``retuned``: another tuning, or none, than before is kept for its next load. ``untuned``: why it
    could not be loaded as tuned; it was loaded as all versions are, and its tuning dropped.
    ``restored``: it was out of the engine though clients may ask for it, and is loaded again.
    ``engine``: the one that runs it. ``signer``: as of a version."""

    model: str
    version: int
    state: State
    already_registered: bool
    retuned: bool = False
    untuned: str = ""
    restored: bool = False
    engine: EngineKind = "torchserve"
    signer: SignerText = ""


class Released(View):
    """``version`` has the traffic; ``previous`` had it before and stays loaded.
    ``already_released``: it had the traffic before, and nothing was done. ``unrecorded``: why the
    ledger does not know it yet, and is told later; empty where it does."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "tagger", "version": 2, "previous": 1, "already_released": False}
            ]
        }
    )

    model: str
    version: int
    previous: int | None
    already_released: bool = False
    unrecorded: str = ""


class Unloaded(View):
    """``state`` is retired, or draining when requests were still under way after the drain
    timeout: it goes as soon as they are answered."""

    model: str
    version: int
    state: State


class TroubleView(View):
    """One thing that is not well."""

    check: str = Field(description="Which check found it: engine, gateway, ledger, disk, ….")
    message: str = Field(description="What happened, to what, and what to do next.")
    passing: bool = Field(default=False, description="It goes by itself in a moment.")


class Deleted(View):
    """``rollback_to``: where a rollback of the model goes from now on; null: nowhere."""

    model: str
    version: int
    state: State
    freed_bytes: int = Field(description="0: the archive was gone before.")
    rollback_to: int | None


class Health(View):
    """Of the control service's surroundings."""

    status: str = Field(description="ok, or the messages of the troubles.")
    engine_instances: tuple[str, ...] = Field(description="Those that answered at the last tick.")
    gateway_ready: bool
    restoring: tuple[str, ...] = Field(
        description="Versions (`model version`) that an instance is to get back after its restart."
    )
    troubles: tuple[TroubleView, ...] = Field(default=(), description="What is not well.")
    warnings: tuple[str, ...] = Field(
        default=(), description="What is worth knowing, and keeps nothing from serving."
    )


class ConsoleLink(View):
    """What lets one browser into the console, once."""

    path: str = Field(description="At this service.")
    valid_s: float = Field(description="How long it works, s.")


class ErrorBody(View):
    code: str
    message: str


class ErrorView(View):
    """Every answer that is not 2xx."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "version_not_found",
                        "message": "tagger has no version 7 (there is 1, 2)",
                    }
                }
            ]
        }
    )

    error: ErrorBody
