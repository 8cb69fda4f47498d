"""One version without a ledger, over an engine and a gateway in memory."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.running_stack import wait_until
from support.version_records import STABLE
from vlserve.control.domain import LoadedVersion
from vlserve.control.log_rotation import LOG_BYTES, renamed
from vlserve.control.reconcile import liveness, one_version
from vlserve.control.reconcile.one_version import OneVersion
from vlserve.errors import LoadFailed
from vlserve.runtime.archive import manifest_of

Archive = Callable[..., Path]
KEY = ("tagger", 1)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """The log of answers."""
    return tmp_path / "answers.jsonl"


@pytest.fixture
def version(
    pack: Archive,
    engine: FakeEngine,
    gateway: FakeGateway,
    answers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[OneVersion]:
    monkeypatch.setattr(one_version, "_ASK_S", 0.0)
    monkeypatch.setattr(liveness, "_SHARE", 0.0)
    archive = pack("tagger", 1)
    record = dataclasses.replace(STABLE, archive=archive, manifest=manifest_of(archive))
    service = OneVersion(record, engine, gateway, answers, tick_s=0.01)
    yield service
    service.stop()


@pytest.fixture
def ready_version(version: OneVersion) -> OneVersion:
    version.begin().result()
    return version


def _unready(gateway: FakeGateway) -> str:
    return gateway.applied[-1].unready


def test_it_is_ready_once_it_is_loaded_and_has_answered_its_probes(
    ready_version: OneVersion, gateway: FakeGateway
) -> None:
    reasons = [routing.unready for routing in gateway.applied]
    assert reasons[-1] == ""
    assert all(reasons[:-1])
    (model,) = gateway.applied[-1].models
    assert (model.model, model.weights, model.versions) == ("tagger", {1: 100}, (1,))


def test_a_load_that_fails_says_why(version: OneVersion, engine: FakeEngine) -> None:
    engine.fail_to_load[KEY] = "no such graph"
    with pytest.raises(LoadFailed, match="no such graph"):
        version.begin().result()


def test_wrong_answers_are_no_service(version: OneVersion, engine: FakeEngine) -> None:
    engine.answer_wrong.add(KEY)
    with pytest.raises(LoadFailed, match="does not answer as it did when it was packed"):
        version.begin().result()


def test_a_bare_engine_gets_the_version_again(
    ready_version: OneVersion, engine: FakeEngine, gateway: FakeGateway
) -> None:
    engine.restart_bare("engine-0")
    engine.hold_loads.clear()
    ready_version.tick()
    assert "no engine instance" in _unready(gateway)
    assert KEY in gateway.applied[-1].instances[0].lacks
    engine.hold_loads.set()
    ready_version.start()
    wait_until(lambda: not _unready(gateway))
    assert engine.loads == [KEY, KEY]


def test_readiness_rests_on_predictions(
    ready_version: OneVersion, engine: FakeEngine, gateway: FakeGateway
) -> None:
    ready_version.start()
    engine.answer_wrong.add(KEY)
    wait_until(lambda: "expected" in _unready(gateway))
    engine.answer_wrong.clear()
    wait_until(lambda: not _unready(gateway))
    engine.held["engine-0"][KEY] = LoadedVersion(0, 0)
    wait_until(lambda: "no engine instance" in _unready(gateway))


def test_who_leaves_is_not_ready_and_still_routed(
    ready_version: OneVersion, gateway: FakeGateway
) -> None:
    ready_version.leave("it is being stopped")
    ready_version.tick()
    assert _unready(gateway) == "it is being stopped"
    assert gateway.applied[-1].instances[0].lacks == frozenset()


def test_the_log_of_answers_is_rotated_whatever_a_tick_does(
    version: OneVersion, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.touch()
    os.truncate(answers, LOG_BYTES)
    monkeypatch.setattr(OneVersion, "tick", _fail)
    version.start()
    wait_until(lambda: not answers.exists())
    assert renamed(answers, 1).stat().st_size == LOG_BYTES


def _fail(_: OneVersion) -> None:
    raise RuntimeError("the engine answers nonsense")
