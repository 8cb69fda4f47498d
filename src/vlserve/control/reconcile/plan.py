"""Decisions, without effects: what a version may become, where traffic goes, what a tick does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vlserve.control.domain import (
    Instance,
    Key,
    LoadedVersion,
    ModelRecord,
    ModelRoute,
    Routing,
    State,
    VersionRecord,
)
from vlserve.errors import NothingToRollBackTo

Held = Mapping[str, Mapping[Key, LoadedVersion]]
"""Instance name -> what it holds."""


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.LOADING}),
    # retired: a version that was ready before, and could not be loaded again
    State.LOADING: frozenset({State.READY, State.FAILED, State.RETIRED}),
    State.READY: frozenset({State.CANARY, State.STABLE, State.DRAINING}),
    State.CANARY: frozenset({State.STABLE, State.READY}),
    State.STABLE: frozenset({State.READY, State.CANARY}),
    State.DRAINING: frozenset({State.RETIRED}),
    State.RETIRED: frozenset({State.LOADING}),
    State.FAILED: frozenset({State.LOADING}),
}
"""State -> the states that a version may move to."""


def full_weight(version: int) -> dict[int, int]:
    """All of a model's traffic to one version."""
    return {version: 100}


def shared_weights(candidate: int, stable: int, weight: int) -> dict[int, int]:
    """``weight`` per cent to the candidate, which comes first, so that a caller who is on it stays
    on it as the weight rises; the rest to stable."""
    shares = {candidate: weight, stable: 100 - weight}
    return {version: share for version, share in shares.items() if share}


def states_after(
    states: Mapping[int, State], weights: Mapping[int, int], stable: int
) -> dict[int, State]:
    """The versions whose state changes when ``weights`` come into force: ``stable`` is the version
    that a rollback would keep, every other one with weight is a canary, and one that lost its
    weight stays loaded as ready."""
    after = {
        version: _state_with(weights, stable, version, state) for version, state in states.items()
    }
    return {version: state for version, state in after.items() if state is not states[version]}


def _state_with(weights: Mapping[int, int], stable: int, version: int, state: State) -> State:
    if version == stable:
        return State.STABLE
    if weights.get(version):
        return State.CANARY
    return State.READY if state in (State.STABLE, State.CANARY) else state


def rollback_target(model: str, stack: Sequence[int], version: int | None) -> int:
    """The version that a rollback goes to. ``stack``: the stable versions in force one over the
    other, the newest last; ``version``: None for the one before, or one of the earlier ones."""
    earlier = [entry for entry in stack[:-1] if entry != stack[-1]]
    if not earlier:
        raise NothingToRollBackTo(
            f"{model} has no earlier stable version; to move it anyway, release a version"
        )
    if version is None:
        return earlier[-1]
    if version not in earlier:
        known = ", ".join(str(entry) for entry in dict.fromkeys(earlier))
        raise NothingToRollBackTo(
            f"{model} {version} is not an earlier stable version (those are {known}); "
            f"to move traffic to it, release it"
        )
    return version


def routing(
    models: Iterable[ModelRecord], versions: Iterable[VersionRecord], instances: Iterable[Instance]
) -> Routing:
    """What the gateway must know: every loaded version by its own path, weights by model."""
    routable: dict[str, list[int]] = {}
    for record in versions:
        if record.state.routable:
            routable.setdefault(record.model, []).append(record.version)
    routes = [
        ModelRoute(
            model=model.model,
            weights=dict(model.weights),
            versions=tuple(sorted(routable.get(model.model, ()))),
            salt=model.salt,
            step=model.step,
            shadow=model.shadow,
        )
        for model in models
        if model.model in routable
    ]
    return Routing(
        models=tuple(sorted(routes, key=lambda route: route.model)),
        instances=tuple(sorted(instances, key=lambda instance: instance.name)),
    )


def remember(
    known: Mapping[str, Instance], answering: Iterable[Instance], held: Held, routable: set[Key]
) -> dict[str, Instance]:
    """The instances for the gateway. One that does not answer keeps what was known of it: the
    gateway notices a dead one itself, and a slow management port must not take traffic away."""
    after = dict(known)
    for instance in answering:
        before = known.get(instance.name)
        restarted = before is not None and before.token != instance.token
        lacked = before.lacks if before and not restarted else frozenset()
        holds = held.get(instance.name, {})
        lacks = frozenset(
            key for key in routable if _lacks(holds.get(key), key in lacked or restarted)
        )
        after[instance.name] = replace(instance, lacks=lacks)
    return after


def _lacks(loaded: LoadedVersion | None, lacked: bool) -> bool:
    """A version whose workers are coming up is lacking if it was before (it is being loaded), and
    held if it was before (its workers are being replaced, and its queue is answered)."""
    if loaded is None:
        return True
    return lacked and not loaded.workers_ready


@dataclass(frozen=True)
class LedgerView:
    """What should be. ``running``: an operation on the version is under way; ``waiting``: its last
    one failed, and is not to be tried again yet."""

    models: Sequence[ModelRecord]
    versions: Sequence[VersionRecord]
    running: frozenset[Key] = frozenset()
    waiting: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class EngineView:
    """What the instances that answer hold."""

    held: Held


@dataclass(frozen=True)
class GatewayView:
    """``instances``: all that are known. ``in_flight``: requests of versions that may go; one
    that is not there is not known to be idle."""

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
    """Take a version out of the engine that the ledger does not want there."""

    model: str
    version: int


Action = Route | Load | Restore | Retire | Remove

_WITH_WEIGHT = (State.STABLE, State.CANARY)
_UNFINISHED = (State.REGISTERED, State.LOADING)


def plan(ledger: LedgerView, engine: EngineView | None, gateway: GatewayView) -> list[Action]:
    """What mends the difference, in order: traffic first, then loads (versions with weight before
    the others), then what may go. ``engine`` is None when no instance answers.

    Routing is put in force at every tick, which is free where it is in force. While no instance
    has ever been seen there is nothing to say, and what the gateway has stays.
    """
    actions: list[Action] = []
    if gateway.instances:
        actions.append(Route(routing(ledger.models, ledger.versions, gateway.instances)))
    if engine is None:
        return actions
    untouchable = ledger.running | ledger.waiting
    free = [record for record in ledger.versions if record.key not in untouchable]
    actions += _loads(ledger, free, engine.held)
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
    return actions


def _loads(ledger: LedgerView, free: Sequence[VersionRecord], held: Held) -> list[Action]:
    """What has traffic is restored first, alone: all cores are its own."""
    lacking = {
        record.key
        for record in ledger.versions
        if record.state.routable and any(not _serves(holds, record.key) for holds in held.values())
    }
    weighted = [record for record in ledger.versions if record.state in _WITH_WEIGHT]
    restores: list[Action] = [Restore(r) for r in weighted if r in free and r.key in lacking]
    if restores or any(r.key in lacking & ledger.running for r in weighted):
        return restores
    others = [record for record in free if record.state not in _WITH_WEIGHT]
    actions: list[Action] = [Restore(record) for record in others if record.key in lacking]
    return actions + [Load(record) for record in others if record.state in _UNFINISHED]


def _serves(holds: Mapping[Key, LoadedVersion], key: Key) -> bool:
    return key in holds and holds[key].workers_ready > 0


def is_idle(key: Key, held: Held, in_flight: Mapping[Key, int]) -> bool:
    """Whether nobody waits for this version's answer, at the gateway or in an engine's queue."""
    pending = sum(holds[key].pending for holds in held.values() if key in holds)
    return pending == 0 and in_flight.get(key) == 0


def unwanted(records: Iterable[VersionRecord], held: Held) -> set[Key]:
    """What the engine holds and the ledger does not want there."""
    out = (State.FAILED, State.RETIRED)
    wanted = {record.key for record in records if record.state not in out}
    return {key for holds in held.values() for key in holds} - wanted
