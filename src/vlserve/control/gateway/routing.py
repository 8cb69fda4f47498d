"""Weights, and the routing that the gateway is to have: models, versions, instances. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vlserve.control.domain import (
    Held,
    Instance,
    Key,
    LoadedVersion,
    ModelRecord,
    ModelRoute,
    Routing,
    VersionRecord,
)
from vlserve.control.placement import Placement
from vlserve.runtime.manifest import Manifest


def full_weight(version: int) -> dict[int, int]:
    """Return weights that give one version all of a model's traffic."""
    return {version: 100}


def shared_weights(candidate: int, stable: int, weight: int) -> dict[int, int]:
    """Return weights with ``weight`` per cent for the candidate and the rest for stable.

    The candidate comes first, so that a caller who is on it stays on it as its weight rises.
    """
    shares = {candidate: weight, stable: 100 - weight}
    return {version: share for version, share in shares.items() if share}


def desired_routing(
    models: Iterable[ModelRecord],
    versions: Iterable[VersionRecord],
    instances: Iterable[Instance],
    placement: Placement,
) -> Routing:
    """Return the routing that the ledger wants: a path per loaded version, weights by model. A
    version's requests go to instances of its engine alone: the others count as lacking it."""
    served = [record for record in versions if record.state.routable]
    routable: dict[str, dict[int, Manifest]] = {}
    for record in served:
        routable.setdefault(record.model, {})[record.version] = record.manifest
    routes = [
        ModelRoute(
            model=model.model,
            weights=dict(model.weights),
            versions=tuple(sorted(routable[model.model])),
            salt=model.salt,
            step=model.step,
            shadow=model.shadow,
            manifests=routable[model.model],
        )
        for model in models
        if model.model in routable
    ]
    return Routing(
        models=tuple(sorted(routes, key=lambda route: route.model)),
        instances=tuple(
            replace(instance, lacks=instance.lacks | _elsewhere(instance, served, placement))
            for instance in sorted(instances, key=lambda instance: instance.name)
        ),
    )


def _elsewhere(
    instance: Instance, records: Iterable[VersionRecord], placement: Placement
) -> frozenset[Key]:
    """Return the versions that other engines run."""
    return frozenset(record.key for record in records if not placement.is_on(instance.name, record))


def known_instances(
    known: Mapping[str, Instance],
    answering: Iterable[Instance],
    held: Held,
    routable: Iterable[VersionRecord],
    placement: Placement,
) -> dict[str, Instance]:
    """Return the engine instances as the gateway is to reach them, by name. Each lacks what it is
    to hold and does not: what other engines run is left out.

    One that does not answer keeps what was known of it: the gateway notices a dead one itself, and
    a slow management port must not take traffic away.

    Args:
        known: the instances until now.
        answering: those that answer now, with what each holds in ``held``.
        routable: the versions that clients may ask for.
    """
    after = dict(known)
    for instance in answering:
        before = known.get(instance.name)
        restarted = before is not None and before.token != instance.token
        lacked = before.lacks if before and not restarted else frozenset()
        holds = held.get(instance.name, {})
        own = [record.key for record in routable if placement.is_on(instance.name, record)]
        lacks = frozenset(key for key in own if _lacks(holds.get(key), key in lacked or restarted))
        after[instance.name] = replace(instance, lacks=lacks)
    return after


def _lacks(loaded: LoadedVersion | None, lacked: bool) -> bool:
    """Return whether an instance lacks a version, of which it says ``loaded``.

    A version whose workers are coming up is lacking if it was before (it is being loaded), and held
    if it was before (its workers are being replaced, and its queue is answered).
    """
    if loaded is None:
        return True
    return lacked and not loaded.workers_ready
