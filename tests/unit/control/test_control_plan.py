"""Decisions, tick by tick: what a plan holds for every state of ledger, engine and gateway."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from support.version_records import ALONE, BUSY, ONE, READY, STABLE, STARTING, UP, version
from vlserve.control.domain import Instance, Key, LoadedVersion, ModelRecord, State, VersionRecord
from vlserve.control.gateway.routing import known_instances
from vlserve.control.placement import Placement
from vlserve.control.reconcile.plan import (
    Action,
    EngineView,
    GatewayView,
    LedgerView,
    Load,
    Remove,
    Restore,
    Retire,
    Route,
    plan,
)


def acts(
    *versions: VersionRecord,
    instances: Mapping[str, Mapping[Key, LoadedVersion]] | None,
    in_flight: Mapping[Key, int] | None = None,
    operations: frozenset[Key] = frozenset(),
    waits: frozenset[Key] = frozenset(),
    placement: Placement = ALONE,
) -> list[Action]:
    """The plan, but for the routing that every plan begins with."""
    models = [ModelRecord("tagger", {1: 100}, (1,), "1")]
    actions = plan(
        LedgerView(models, versions, operations, waits),
        None if instances is None else EngineView(instances),
        GatewayView(
            [ONE], {("tagger", 1): 0, ("tagger", 2): 0} if in_flight is None else in_flight
        ),
        placement,
    )
    assert isinstance(actions[0], Route)
    assert not any(isinstance(action, Route) for action in actions[1:])
    return actions[1:]


ALL = {("tagger", 1): UP, ("tagger", 2): UP}


def test_nothing_to_do_when_all_is_as_desired() -> None:
    assert acts(STABLE, READY, instances={"engine-0": ALL}) == []


def test_a_bare_engine_gets_what_has_traffic_first_and_alone() -> None:
    other = version(1, State.STABLE, "zebra")
    third = version(3, State.LOADING)
    everything = READY, third, STABLE, other
    assert acts(*everything, instances={"engine-0": {}}) == [Restore(STABLE), Restore(other)]
    operations = frozenset({("tagger", 1), ("zebra", 1)})
    assert acts(*everything, instances={"engine-0": {}}, operations=operations) == []
    instances = {"engine-0": {("tagger", 1): UP, ("zebra", 1): UP}}
    assert acts(*everything, instances=instances) == [Restore(READY), Load(third)]


def test_a_stable_version_that_does_not_come_back_does_not_keep_the_others_out() -> None:
    keys = frozenset({("tagger", 1)})
    assert acts(STABLE, READY, instances={"engine-0": {}}, waits=keys) == [Restore(READY)]


def test_one_bare_instance_of_two_is_enough_to_restore() -> None:
    assert acts(STABLE, instances={"engine-0": ALL, "engine-1": {}})[0] == Restore(STABLE)


def test_a_version_whose_workers_are_all_gone_is_restored() -> None:
    assert acts(STABLE, instances={"engine-0": {("tagger", 1): STARTING}}) == [Restore(STABLE)]


@pytest.mark.parametrize("state", [State.REGISTERED, State.LOADING])
def test_an_interrupted_load_is_finished_whether_the_engine_has_it_or_not(state: State) -> None:
    second = version(2, state)
    for versions in ({("tagger", 1): UP}, ALL):
        assert acts(STABLE, second, instances={"engine-0": versions}) == [Load(second)]


def test_what_an_operation_works_on_is_left_alone() -> None:
    second = version(2, State.LOADING)
    busy = frozenset({("tagger", 2), ("stray", 1)})
    instances = {"engine-0": {("tagger", 1): UP, ("stray", 1): UP}}
    assert acts(STABLE, second, instances=instances, operations=busy) == []
    assert acts(STABLE, second, instances=instances, waits=busy) == []


def test_a_drained_version_is_retired_and_a_busy_one_is_not() -> None:
    second = version(2, State.DRAINING)
    assert acts(STABLE, second, instances={"engine-0": ALL}) == [Retire(second)]
    versions = {**ALL, ("tagger", 2): BUSY}
    assert acts(STABLE, second, instances={"engine-0": ALL, "engine-1": versions}) == []
    in_flight = {("tagger", 2): 1}
    assert acts(STABLE, second, instances={"engine-0": ALL}, in_flight=in_flight) == []


def test_a_version_that_the_gateway_says_nothing_of_counts_as_busy() -> None:
    assert acts(STABLE, version(2, State.DRAINING), instances={"engine-0": ALL}, in_flight={}) == []


@pytest.mark.parametrize("state", [State.FAILED, State.RETIRED, None])
def test_what_the_ledger_does_not_want_is_removed_once_idle(state: State | None) -> None:
    records = [STABLE] if state is None else [STABLE, version(2, state)]
    assert acts(*records, instances={"engine-0": ALL}) == [Remove("tagger", 2)]
    instances = {"engine-0": {**ALL, ("tagger", 2): BUSY}}
    assert acts(*records, instances=instances) == []


def test_failed_and_retired_versions_stay_out() -> None:
    out = version(2, State.FAILED), version(3, State.RETIRED)
    assert acts(STABLE, *out, instances={"engine-0": {("tagger", 1): UP}}) == []


def test_without_an_engine_only_the_routing_is_kept() -> None:
    assert acts(STABLE, version(2, State.DRAINING), instances=None) == []


def test_before_any_instance_was_seen_the_gateway_keeps_what_it_has() -> None:
    models = [ModelRecord("tagger", {1: 100}, (1,), "1")]
    assert plan(LedgerView(models, [STABLE]), None, GatewayView([], {}), ALONE) == []


def test_an_engine_that_dies_and_comes_back_bare_tick_by_tick() -> None:
    """What the gateway is told, and what is loaded, at each look at the world."""
    models = [ModelRecord("tagger", {1: 100}, (1,), "1")]
    ledger = LedgerView(models, [STABLE, READY])
    both = frozenset({("tagger", 1), ("tagger", 2)})
    instances: dict[str, Instance] = {}

    def tick(
        token: str | None, versions: Mapping[Key, LoadedVersion]
    ) -> tuple[list[Instance], list[Action]]:
        nonlocal instances
        engine = None
        if token is not None:
            instances = known_instances(
                instances,
                [replace(ONE, token=token)],
                {"engine-0": versions},
                [STABLE, READY],
                ALONE,
            )
            engine = EngineView({"engine-0": versions})
        route, *rest = plan(ledger, engine, GatewayView(tuple(instances.values()), {}), ALONE)
        assert isinstance(route, Route)
        return list(route.routing.instances), rest

    second = replace(ONE, token="second")
    assert tick("first", ALL) == ([ONE], [])
    assert tick(None, {}) == ([ONE], [])  # dead: the gateway sees that itself
    assert tick("second", {}) == (
        [replace(second, lacks=both)],
        [Restore(STABLE)],
    )
    versions = {("tagger", 1): STARTING}
    assert tick("second", versions)[0] == [replace(second, lacks=both)]
    assert tick("second", {("tagger", 1): UP}) == (
        [replace(second, lacks=frozenset({("tagger", 2)}))],
        [Restore(READY)],
    )
    assert tick("second", ALL) == ([second], [])
