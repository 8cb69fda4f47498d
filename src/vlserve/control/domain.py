"""The data of the control plane: versions, routing, rollouts and events.

Models and versions are identified by (model, version). Protocols of the engine and the gateway are
in `vlserve.control.ports`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Literal

from vlserve.control.tuning import Tuning
from vlserve.runtime.manifest import Adopted, Manifest

Key = tuple[str, int]
"""(model, version)."""

MODEL_NAME_RULE = (
    "a name is made of lower-case letters, digits, - and _, begins with a letter, and has 63 "
    "characters at most"
)
"""What `vlserve.runtime.manifest.ModelName` asks, in words."""


class State(StrEnum):
    """Where one version stands. The ledger holds it; the reconcile tick makes it true."""

    REGISTERED = "registered"  # verified and stored, not asked to load yet
    LOADING = "loading"  # being loaded and probed
    READY = "ready"  # loaded, answers its probes, no weight
    CANARY = "canary"  # has part of the weight
    STABLE = "stable"  # has the weight
    DRAINING = "draining"  # no route any more; unloaded when nothing is in flight
    RETIRED = "retired"  # not in the engine; may be released again
    FAILED = "failed"  # could not be loaded; the reason is in the ledger
    DELETED = "deleted"  # its archive is gone from the store; its number stays taken

    @property
    def loaded(self) -> bool:
        """Whether the engine must hold the version."""
        return self in (State.LOADING, State.READY, State.CANARY, State.STABLE)

    @property
    def routable(self) -> bool:
        """Whether clients may ask for the version."""
        return self in (State.READY, State.CANARY, State.STABLE)

    @property
    def out(self) -> bool:
        """Whether the engine must not hold the version."""
        return self in (State.FAILED, State.RETIRED, State.DELETED)


EngineKind = Literal["torchserve", "triton"]


@dataclass(frozen=True)
class Instance:
    """One running engine process as the gateway reaches it."""

    name: str
    host: str
    port: int
    token: str
    """The inference token of this start of the engine; every start makes a new one."""
    lacks: frozenset[Key] = frozenset()
    """Routed versions that this instance does not hold, as after a bare restart. The gateway sends
    it none of their requests: an engine would answer 404 to them, as if they did not exist."""
    engine: EngineKind = "torchserve"


@dataclass(frozen=True)
class LoadedVersion:
    """What one engine instance reports of one version."""

    workers_ready: int
    pending: int
    """Requests in its queue."""


@dataclass(frozen=True)
class ClientRequest:
    """One request for a prediction, as a client sends it."""

    body: bytes
    content_type: str
    request_id: str


@dataclass(frozen=True)
class EngineAnswer:
    """What a version said to one request: a status, as a client would see it, and a body.

    ``timing``: its Server-Timing header, with the time of each stage; empty where it has none.
    """

    status: int
    body: bytes
    timing: str = ""


Held = Mapping[str, Mapping[Key, LoadedVersion]]
"""What each engine instance holds: instance name -> (model, version) -> its workers."""


@dataclass(frozen=True)
class Shadow:
    """A version that gets copies of ``percent`` of the weighted requests. Its answers reach no
    client."""

    version: int
    percent: int


@dataclass(frozen=True)
class ModelRoute:
    """How the gateway routes one model.

    ``weights``: version -> share, summing to 100, the candidate first (so that a caller who is on
    the candidate stays on it as its weight rises). ``versions``: all that clients may ask for.
    ``salt``: drawn anew for each rollout, so that other callers meet the next candidate first, and
    secret, so that no caller can choose to be one.
    ``step``: written into the log of every request that the weights route, so that it counts for
    the rollout's step that routed it, whenever it ends; empty outside of a rollout.
    ``manifests``: version -> what its archive says of itself, as far as it is known; it never
    changes, so it makes no two routes differ.
    """

    model: str
    weights: Mapping[int, int]
    versions: Sequence[int]
    salt: str = ""
    step: str = ""
    shadow: Shadow | None = None
    manifests: Mapping[int, Manifest] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_released(self) -> bool:
        """Return whether a version has weight."""
        return any(self.weights.values())

    @property
    def adopted(self) -> Mapping[int, Adopted]:
        """Return of each version that was adopted what it was: its handler gets the client's
        headers, and the rest of the path after the version."""
        return {
            version: manifest.adopted
            for version, manifest in self.manifests.items()
            if manifest.adopted
        }


@dataclass(frozen=True)
class Routing:
    """All that the gateway must know. It is rendered whole and applied whole.

    ``unready``: why V2's readiness of the server is to say no; empty where it says yes.
    """

    models: Sequence[ModelRoute] = ()
    instances: Sequence[Instance] = ()
    unready: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """What the ledger says of one model.

    ``weights``: version -> desired share, the candidate first. ``stack``: the stable versions in
    force one over the other, the newest last: a release pushes, a rollback pops. ``intended``:
    weights that were about to replace ``weights`` when a control service died; the gateway may be
    at them until the next tick. ``salt``, ``step``, ``shadow``: see ModelRoute.
    """

    model: str
    weights: Mapping[int, int]
    stack: tuple[int, ...]
    salt: str
    step: str = ""
    shadow: Shadow | None = None
    intended: Mapping[int, int] | None = None

    @property
    def stable(self) -> int | None:
        """The stable version in force; None before the first release."""
        return self.stack[-1] if self.stack else None

    @property
    def earlier(self) -> tuple[int, ...]:
        """The versions that a rollback goes to, the next one first."""
        return tuple(version for version in reversed(self.stack[:-1]) if version != self.stable)


@dataclass(frozen=True)
class Signer:
    """Whose key signed an archive, as it was verified last. ``name``: of the key's file then;
    ``hint``: the sha256 of the key's PEM; ``pem``: the public key."""

    name: str
    hint: str
    pem: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.hint[:12]})"


@dataclass(frozen=True)
class VersionRecord:
    """What the ledger says of one version.

    ``was_ready``: it answered its probes at least once, so its number is taken for good. Times are
    UTC, ISO 8601. ``engine``: the one that it was registered for; `Placement` says which one runs
    it. ``signer``: None where no trusted key is known to have signed it.
    """

    model: str
    version: int
    archive: Path
    sha256: str
    manifest: Manifest
    state: State
    reason: str
    was_ready: bool
    registered_at: str
    changed_at: str
    tuning: Tuning | None = None
    engine: EngineKind = "torchserve"
    signer: Signer | None = None

    @property
    def key(self) -> Key:
        return self.model, self.version

    @property
    def task(self) -> str:
        return self.manifest.task

    @property
    def family(self) -> str:
        return self.manifest.family

    @property
    def precision(self) -> str:
        return self.manifest.precision


class RolloutStatus(StrEnum):
    """Where a rollout stands. The last three are ends."""

    RUNNING = "running"
    PAUSED = "paused"  # keeps its weight; still goes back on an alarm
    PROMOTED = "promoted"  # the candidate became stable
    ROLLED_BACK = "rolled_back"  # by the judge
    ABORTED = "aborted"  # taken back by hand

    @property
    def under_way(self) -> bool:
        return self in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)


@dataclass(frozen=True)
class Rollout:
    """One stepped release, as the ledger has it.

    ``state_json``: what the judge knows, as `vlserve.control.rollouts.state` writes it; nobody else
    needs it, and it may be unreadable. ``keep_until``: Unix time, s, until which a candidate that
    was taken back stays loaded. Times are UTC, ISO 8601.
    """

    id: int
    model: str
    candidate: int
    stable: int
    status: RolloutStatus
    step: int
    shadow_percent: int
    """Of this step: 0 outside of a shadow."""
    started_at: str
    ended_at: str | None
    keep_until: float | None
    state_json: str
    salt: str = field(default="", repr=False)
    """See ModelRoute."""


Right = Literal["stable", "candidate", "neither"]
"""Whose answer is right."""


@dataclass(frozen=True)
class Mark:
    """What a person said of a shadow pair that differs. ``label``: the right one; empty where it is
    not known. ``marked_at``: UTC, ISO 8601."""

    model: str
    request_id: str
    stable: int
    candidate: int
    right: Right
    label: str
    marked_at: str
    marked_by: str = ""
    """Name of the key; empty for a mark of before there were names."""


@dataclass(frozen=True)
class Event:
    """One line of the append-only history of a model."""

    at: str
    model: str
    version: int | None
    kind: str
    """registered, loaded, released, release_started, advanced, held, rolled_back, unloaded, …"""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionStatus(VersionRecord):
    """A version with its weight and what the engine said of it at the last tick. ``engine``: the
    one that runs it."""

    weight: int = 0
    """Share of the model's traffic, per cent."""
    workers_ready: Mapping[str, int] = field(default_factory=dict)
    """Engine instance -> workers that can answer; instances without the version are left out."""
    pending: int = 0
    """Requests in the queues of all instances."""
    instead_of: EngineKind | None = None
    """The engine that it was registered for, where this stack does not run that one."""


@dataclass(frozen=True)
class ModelStatus(ModelRecord):
    """A model with all its versions."""

    versions: tuple[VersionStatus, ...] = ()


@dataclass(frozen=True)
class Trouble:
    """One thing that is not well: what happened, to what, and what to do next.

    ``check``: the name of the check that found it (engine, gateway, ledger, disk, …). ``passing``:
    it goes by itself in a moment, so that `vlserve up` waits for it.
    """

    check: str
    message: str
    passing: bool = False


class Reply(Enum):
    """What came of a question to a process."""

    ANSWERED = "answered"
    NONE_IN_TIME = "none in time"
    """It takes questions, and answers none."""
    GONE = "gone"
    """It takes no questions."""


HealthCheck = Callable[[], Iterable[Trouble]]
"""Returns what is not well at this moment, within milliseconds; raises nothing."""


@dataclass(frozen=True)
class StackStatus:
    """What the control service sees of the engine, the gateway and its own surroundings."""

    status: str
    """ok, or the messages of the troubles."""
    engine_instances: tuple[str, ...]
    """Those that answered at the last tick."""
    gateway_ready: bool
    restoring: tuple[str, ...]
    """Versions ("model version") that an instance is to get back after its restart."""
    troubles: tuple[Trouble, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is worth knowing, and keeps nothing from serving."""
