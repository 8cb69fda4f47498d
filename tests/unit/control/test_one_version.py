"""One version without a ledger, over an engine and a gateway in memory."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.running_stack import wait_until
from support.version_records import STABLE
from vlserve.control.domain import LoadedVersion
from vlserve.control.reconcile import liveness, one_version
from vlserve.control.reconcile.one_version import OneVersion
from vlserve.errors import LoadFailed
from vlserve.runtime.archive import manifest_of

Archive = Callable[..., Path]
KEY = ("tagger", 1)


@pytest.fixture
def one(
    packed: Archive, engine: FakeEngine, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OneVersion]:
    monkeypatch.setattr(one_version, "_ASK_S", 0.0)
    monkeypatch.setattr(liveness, "_SHARE", 0.0)
    archive = packed("tagger", 1)
    record = dataclasses.replace(STABLE, archive=archive, manifest=manifest_of(archive))
    made = OneVersion(record, engine, gateway, tick_s=0.01)
    yield made
    made.stop()


@pytest.fixture
def serving(one: OneVersion) -> OneVersion:
    one.begin().result()
    return one


def _unready(gateway: FakeGateway) -> str:
    return gateway.applied[-1].unready


def test_it_is_ready_once_it_is_loaded_and_has_answered_its_probes(
    serving: OneVersion, gateway: FakeGateway
) -> None:
    said = [routing.unready for routing in gateway.applied]
    assert said[-1] == ""
    assert all(said[:-1])
    (model,) = gateway.applied[-1].models
    assert (model.model, model.weights, model.versions) == ("tagger", {1: 100}, (1,))


def test_a_load_that_fails_says_why(one: OneVersion, engine: FakeEngine) -> None:
    engine.fail_to_load[KEY] = "no such graph"
    with pytest.raises(LoadFailed, match="no such graph"):
        one.begin().result()


def test_wrong_answers_are_no_service(one: OneVersion, engine: FakeEngine) -> None:
    engine.answer_wrong.add(KEY)
    with pytest.raises(LoadFailed, match="does not answer as it did when it was packed"):
        one.begin().result()


def test_a_bare_engine_gets_the_version_again(
    serving: OneVersion, engine: FakeEngine, gateway: FakeGateway
) -> None:
    engine.restart_bare("engine-0")
    engine.hold_loads.clear()
    serving.tick()
    assert "no engine instance" in _unready(gateway)
    assert KEY in gateway.applied[-1].instances[0].lacks
    engine.hold_loads.set()
    serving.start()
    wait_until(lambda: not _unready(gateway))
    assert engine.loads == [KEY, KEY]


def test_readiness_rests_on_predictions(
    serving: OneVersion, engine: FakeEngine, gateway: FakeGateway
) -> None:
    serving.start()
    engine.answer_wrong.add(KEY)
    wait_until(lambda: "expected" in _unready(gateway))
    engine.answer_wrong.clear()
    wait_until(lambda: not _unready(gateway))
    engine.held["engine-0"][KEY] = LoadedVersion(0, 0)
    wait_until(lambda: "no engine instance" in _unready(gateway))


def test_who_leaves_is_not_ready_and_still_routed(
    serving: OneVersion, gateway: FakeGateway
) -> None:
    serving.leave("it is being stopped")
    serving.tick()
    assert _unready(gateway) == "it is being stopped"
    assert gateway.applied[-1].instances[0].lacks == frozenset()
