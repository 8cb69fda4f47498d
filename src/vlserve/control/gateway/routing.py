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
    records = [record for record in versions if record.state.routable]
    manifests: dict[str, dict[int, Manifest]] = {}
    for record in records:
        manifests.setdefault(record.model, {})[record.version] = record.manifest
    routes = [
        ModelRoute(
            model=model.model,
            weights=dict(model.weights),
            versions=tuple(sorted(manifests[model.model])),
            salt=model.salt,
            step=model.step,
            shadow=model.shadow,
            manifests=manifests[model.model],
        )
        for model in models
        if model.model in manifests
    ]
    return Routing(
        models=tuple(sorted(routes, key=lambda route: route.model)),
        instances=tuple(
            replace(instance, lacks=instance.lacks | _elsewhere(instance, records, placement))
            for instance in sorted(instances, key=lambda instance: instance.name)
        ),
    )


def _elsewhere(
    instance: Instance, records: Iterable[VersionRecord], placement: Placement
) -> frozenset[Key]:
    """Return the versions that other engines run."""
    return frozenset(record.key for record in records if not placement.is_on(instance.name, record))


def known_instances(
    registry: Mapping[str, Instance],
    responders: Iterable[Instance],
    holdings: Held,
    versions: Iterable[VersionRecord],
    placement: Placement,
) -> dict[str, Instance]:
    """Return the engine instances as the gateway is to reach them, by name. Each lacks what it is
    to hold and does not: what other engines run is left out.

    One that does not answer keeps what was known of it: the gateway notices a dead one itself, and
    a slow management port must not take traffic away.

    Args:
        registry: the instances until now.
        responders: those that answer now, with what each holds in ``holdings``.
        versions: those that clients may ask for.
    """
    after = dict(registry)
    for instance in responders:
        before = registry.get(instance.name)
        restarted = before is not None and before.token != instance.token
        old_lacks = before.lacks if before and not restarted else frozenset()
        contents = holdings.get(instance.name, {})
        own = [record.key for record in versions if placement.is_on(instance.name, record)]
        lacks = frozenset(
            key for key in own if _lacks(contents.get(key), key in old_lacks or restarted)
        )
        after[instance.name] = replace(instance, lacks=lacks)
    return after


def _lacks(version: LoadedVersion | None, lacked: bool) -> bool:
    """Return whether an instance lacks a version, of which it says ``version``; None: nothing.

    A version whose workers are coming up is lacking if it was before (it is being loaded), and held
    if it was before (its workers are being replaced, and its queue is answered).
    """
    if version is None:
        return True
    return lacked and not version.workers_ready
