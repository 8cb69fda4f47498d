"""The data of the control plane: versions, routing, rollouts and events.

Models and versions are identified by (model, version). Protocols of the engine and the gateway are
in `vlserve.control.ports`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vlserve.control.tuning import Tuning
from vlserve.runtime.manifest import Manifest

Key = tuple[str, int]
"""(model, version)."""


class State(StrEnum):
    """Where one version stands. The ledger holds it; reconcile makes it true."""

    REGISTERED = "registered"  # verified and stored, not asked to load yet
    LOADING = "loading"  # being loaded and probed
    READY = "ready"  # loaded, answers its probes, no weight
    CANARY = "canary"  # has part of the weight
    STABLE = "stable"  # has the weight
    DRAINING = "draining"  # no route any more; unloaded when nothing is in flight
    RETIRED = "retired"  # not in the engine; may be released again
    FAILED = "failed"  # could not be loaded; the reason is in the ledger

    @property
    def loaded(self) -> bool:
        """Whether the engine must hold the version."""
        return self in (State.LOADING, State.READY, State.CANARY, State.STABLE)

    @property
    def routable(self) -> bool:
        """Whether clients may ask for the version."""
        return self in (State.READY, State.CANARY, State.STABLE)


@dataclass(frozen=True)
class Instance:
    """One running engine process as the gateway reaches it."""

    name: str
    host: str
    port: int
    token: str
    """The inference token of this start of the engine; every start makes a new one."""
    lacks: frozenset[Key] = frozenset()
    """Routed (model, version) pairs that this instance does not hold, as after a bare restart: the
    gateway sends it none of their requests (an engine answers 404 to them, which is a lie)."""


@dataclass(frozen=True)
class LoadedVersion:
    """What one engine instance says of one version."""

    workers_ready: int
    pending: int


Held = Mapping[str, Mapping[Key, LoadedVersion]]
"""What each engine instance holds: instance name -> (model, version) -> its workers."""


@dataclass(frozen=True)
class Shadow:
    """Copies of ``percent`` of the requests that weights route go to ``version`` as well; what it
    says to them reaches no client."""

    version: int
    percent: int


@dataclass(frozen=True)
class ModelRoute:
    """How the gateway routes one model.

    ``weights``: version -> share, summing to 100, the candidate first (so that a caller who is on
    the candidate stays on it as its weight rises). ``versions``: all that clients may ask for.
    ``salt``: changes with each release, so that other callers meet the next candidate first.
    ``step``: written into the log of every request that the weights route, so that it counts for
    the step of the release that routed it, whenever it ends; empty outside of a release.
    """

    model: str
    weights: Mapping[int, int]
    versions: Sequence[int]
    salt: str = ""
    step: str = ""
    shadow: Shadow | None = None


@dataclass(frozen=True)
class Routing:
    """All that the gateway must know; rendered whole, applied whole."""

    models: Sequence[ModelRoute] = ()
    instances: Sequence[Instance] = ()


@dataclass(frozen=True)
class ModelRecord:
    """What the ledger says of one model. ``weights``: version -> desired share, the candidate
    first. ``stack``: the stable versions in force one over the other, the newest last: a release
    pushes, a rollback pops. ``intended``: weights that were about to replace ``weights`` when a
    control service died; the gateway may be at them until the next tick. ``salt``, ``step``,
    ``shadow``: see ModelRoute."""

    model: str
    weights: Mapping[int, int]
    stack: tuple[int, ...]
    salt: str
    step: str = ""
    shadow: Shadow | None = None
    intended: Mapping[int, int] | None = None

    @property
    def stable(self) -> int | None:
        return self.stack[-1] if self.stack else None


@dataclass(frozen=True)
class VersionRecord:
    """What the ledger says of one version. ``was_ready``: it answered its probes at least once, so
    its number is taken for good. Times are UTC, ISO 8601."""

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

    @property
    def key(self) -> Key:
        return self.model, self.version


class RolloutStatus(StrEnum):
    """Where a gray release stands. The last three are ends."""

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
    """One release in steps, as the ledger has it. ``progress``: JSON of
    vlserve.control.rollouts.state, what the judge knows. ``keep_until``: Unix time until which a
    candidate that was taken back stays loaded. Times are UTC, ISO 8601."""

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
    progress: str


@dataclass(frozen=True)
class Event:
    """One line of the append-only history of a model."""

    at: str
    model: str
    version: int | None
    kind: str
    """registered, loaded, released, release_started, advanced, held, rolled_back, unloaded, …"""
    detail: Mapping[str, Any] = field(default_factory=dict)
