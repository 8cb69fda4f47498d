"""An archive that is lost from the store: the reason is where the operator looks, and what is
mended is tried at once."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import kinds
from vlserve.control.assembly import Control
from vlserve.control.domain import Registration, State, Trouble
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.errors import ArchiveLost, EngineUnavailable, LoadFailed, NotReady

Archive = Callable[..., Path]
Register = Callable[..., Registration]
KEY = ("tagger", 1)


def ticks(control: Control) -> None:
    """Tick, and wait for what the ticks began: what has weight is loaded first."""
    for _ in range(3):
        control.reconciler.tick()
        while control.reconciler._submitted:
            time.sleep(0.005)


@pytest.fixture
def lost(tagger: Control, engine: FakeEngine) -> Control:
    """tagger 1 is stable, its archive is gone, and the engine was restarted."""
    tagger.ledger.version(*KEY).archive.unlink()
    engine.restart_bare("engine-0")
    ticks(tagger)
    return tagger


def troubles(control: Control) -> list[Trouble]:
    return [each for each in control.service.health().troubles if each.check == "versions"]


def test_the_reason_is_in_status_and_in_health(lost: Control) -> None:
    (version, _) = lost.service.model("tagger").versions
    assert (version.state, version.weight) == (State.STABLE, 100)
    assert "tagger-1.mar is gone: `vlserve register` of the same" in version.reason
    trouble = next(each for each in troubles(lost) if "tagger 1" in each.message)
    assert "tagger 1 cannot be loaded again" in trouble.message
    assert version.reason in trouble.message
    assert not trouble.passing


def test_register_of_the_same_file_loads_it_at_once(
    lost: Control, engine: FakeEngine, register: Register
) -> None:
    done = register(1)
    assert (done.already_registered, done.restored, done.state) == (True, True, State.STABLE)
    assert KEY in engine.held["engine-0"]
    assert kinds(lost)[-1] == "recovered"
    ticks(lost)
    assert lost.service.health().status == "ok"
    assert lost.service.model("tagger").versions[0].reason == ""


def test_a_file_that_was_copied_back_by_hand_is_tried_at_the_next_tick(
    lost: Control, engine: FakeEngine, packed: Archive
) -> None:
    assert KEY in lost.reconciler._backoff.waiting()
    shutil.copy(packed("tagger", 1), lost.ledger.version(*KEY).archive)
    ticks(lost)
    assert KEY in engine.held["engine-0"]


def test_traffic_is_not_moved_onto_it_and_the_reason_is_said(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    tagger.service.release("tagger", 2)
    tagger.ledger.version(*KEY).archive.unlink()
    engine.restart_bare("engine-0")
    ticks(tagger)
    with pytest.raises(NotReady, match=r"tagger 1 cannot be loaded again.*tagger-1.mar is gone"):
        tagger.service.rollback("tagger")


def test_it_is_told_while_it_still_serves(tagger: Control) -> None:
    tagger.ledger.version(*KEY).archive.unlink()
    (trouble,) = troubles(tagger)
    assert "tagger-1.mar is gone: tagger 1 serves until the engine restarts" in trouble.message


def test_a_load_that_failed_once_may_come_back_by_itself() -> None:
    backoff = Backoff(lambda: 0.0)
    for error, needed in (
        (LoadFailed("its workers were not up"), [False, True]),
        (ArchiveLost("gone"), [True, True]),
        (EngineUnavailable("away"), [False, False]),
    ):
        for expected in needed:
            backoff.failed(KEY, error)
            assert backoff.needs_help(KEY) is expected
        backoff.succeeded(KEY)
        assert not backoff.needs_help(KEY)
