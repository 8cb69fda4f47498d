"""What one tick does: the difference between the ledger, the engine and the gateway. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlserve.control.domain import (
    EngineKind,
    Held,
    Instance,
    Key,
    LoadedVersion,
    ModelRecord,
    Routing,
    State,
    VersionRecord,
)
from vlserve.control.gateway.routing import desired_routing
from vlserve.control.lifecycle.idle import is_idle
from vlserve.control.placement import Placement


@dataclass(frozen=True)
class LedgerView:
    """What the ledger wants. ``running``: versions with an operation under way; ``waiting``: those
    whose last operation failed and is not to be tried again yet."""

    models: Sequence[ModelRecord]
    versions: Sequence[VersionRecord]
    running: frozenset[Key] = frozenset()
    waiting: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class EngineView:
    """What the instances hold that answer."""

    held: Held


@dataclass(frozen=True)
class GatewayView:
    """``instances``: all that are known. ``in_flight``: requests under way of the versions that are
    to go; a version without an entry is not known to be idle."""

    instances: Sequence[Instance]
    in_flight: Mapping[Key, int]


@dataclass(frozen=True)
class Route:
    """Put the gateway on ``routing``."""

    routing: Routing


@dataclass(frozen=True)
class Load:
    """Finish an interrupted load: probe, and open the version's path."""

    record: VersionRecord


@dataclass(frozen=True)
class Restore:
    """Bring a version back onto the instances that lack it."""

    record: VersionRecord


@dataclass(frozen=True)
class Retire:
    """Take a drained version out of the engine."""

    record: VersionRecord


@dataclass(frozen=True)
class Remove:
    """Take a version out of the engine that the ledger does not want there. ``engine``: of an
    engine that it does not run on; None: of all."""

    model: str
    version: int
    engine: EngineKind | None = None


Action = Route | Load | Restore | Retire | Remove

_WITH_WEIGHT = (State.STABLE, State.CANARY)
_UNFINISHED = (State.REGISTERED, State.LOADING)


def plan(
    ledger: LedgerView, engine: EngineView | None, gateway: GatewayView, placement: Placement
) -> list[Action]:
    """Return the actions that mend the difference, in order: traffic first, then loads (versions
    with weight before the others), then what may go. ``engine`` is None when no instance answers.

    Routing is put in force at every tick, which costs nothing where it is in force already. Until
    an instance has been seen, the gateway keeps what it has.
    """
    actions: list[Action] = []
    if gateway.instances:
        routing = desired_routing(ledger.models, ledger.versions, gateway.instances, placement)
        actions.append(Route(routing))
    if engine is None:
        return actions
    untouchable = ledger.running | ledger.waiting
    free = [record for record in ledger.versions if record.key not in untouchable]
    actions += _loads(ledger, free, engine.held, placement)
    actions += [
        Retire(record)
        for record in free
        if record.state is State.DRAINING and is_idle(record.key, engine.held, gateway.in_flight)
    ]
    actions += [
        Remove(*key)
        for key in sorted(unwanted(ledger.versions, engine.held) - untouchable)
        if is_idle(key, engine.held, gateway.in_flight)
    ]
    return actions + _misplaced(free, engine.held, placement)


def _misplaced(
    records: Iterable[VersionRecord], holdings: Held, placement: Placement
) -> list[Action]:
    """Return what takes versions off engines that they do not run on: no request goes there."""
    return [
        Remove(*record.key, placement.kinds[name])
        for record in records
        for name, holding in holdings.items()
        if not record.state.out
        and record.key in holding
        and not holding[record.key].pending
        and not placement.is_on(name, record)
    ]


def _loads(
    ledger: LedgerView, free: Sequence[VersionRecord], holdings: Held, placement: Placement
) -> list[Action]:
    """Return the loads that are due. What has traffic comes first, alone: it gets all cores."""
    gaps = {
        record.key
        for record in ledger.versions
        if record.state.routable
        and any(
            not _serves(holding, record.key)
            for name, holding in holdings.items()
            if placement.is_on(name, record)
        )
    }
    priority = [record for record in ledger.versions if record.state in _WITH_WEIGHT]
    restores: list[Action] = [Restore(r) for r in priority if r in free and r.key in gaps]
    if restores or any(r.key in gaps & ledger.running for r in priority):
        return restores
    others = [record for record in free if record.state not in _WITH_WEIGHT]
    actions: list[Action] = [Restore(record) for record in others if record.key in gaps]
    return actions + [Load(record) for record in others if record.state in _UNFINISHED]


def _serves(holding: Mapping[Key, LoadedVersion], key: Key) -> bool:
    return key in holding and holding[key].workers_ready > 0


def unwanted(records: Iterable[VersionRecord], holdings: Held) -> set[Key]:
    """Return what the engine holds and the ledger does not want there."""
    targets = {record.key for record in records if not record.state.out}
    return {key for holding in holdings.values() for key in holding} - targets
