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
from vlserve.control.domain import State, Trouble
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.control.outcomes import Registration
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
def tagger_without_archive(tagger: Control, engine: FakeEngine) -> Control:
    """tagger 1 is stable, its archive is gone, and the engine was restarted."""
    tagger.ledger.version(*KEY).archive.unlink()
    engine.restart_bare("engine-0")
    ticks(tagger)
    return tagger


def troubles(control: Control) -> list[Trouble]:
    return [each for each in control.service.health().troubles if each.check == "versions"]


def test_the_reason_is_in_status_and_in_health(tagger_without_archive: Control) -> None:
    (version, _) = tagger_without_archive.service.model("tagger").versions
    assert (version.state, version.weight) == (State.STABLE, 100)
    assert "tagger-1.mar is gone: `vlserve register` of the same" in version.reason
    trouble = next(each for each in troubles(tagger_without_archive) if "tagger 1" in each.message)
    assert "tagger 1 cannot be loaded again" in trouble.message
    assert version.reason in trouble.message
    assert not trouble.passing


def test_register_of_the_same_file_loads_it_at_once(
    tagger_without_archive: Control, engine: FakeEngine, register: Register
) -> None:
    registration = register(1)
    assert (registration.already_registered, registration.restored, registration.state) == (
        True,
        True,
        State.STABLE,
    )
    assert KEY in engine.held["engine-0"]
    assert kinds(tagger_without_archive)[-1] == "recovered"
    ticks(tagger_without_archive)
    assert tagger_without_archive.service.health().status == "ok"
    assert tagger_without_archive.service.model("tagger").versions[0].reason == ""


def test_a_file_that_was_copied_back_by_hand_is_tried_at_the_next_tick(
    tagger_without_archive: Control, engine: FakeEngine, pack: Archive
) -> None:
    assert KEY in tagger_without_archive.reconciler._backoff.waiting()
    shutil.copy(pack("tagger", 1), tagger_without_archive.ledger.version(*KEY).archive)
    ticks(tagger_without_archive)
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
    for error, needs in (
        (LoadFailed("its workers were not up"), [False, True]),
        (ArchiveLost("gone"), [True, True]),
        (EngineUnavailable("away"), [False, False]),
    ):
        for expected in needs:
            backoff.failed(KEY, error)
            assert backoff.needs_help(KEY) is expected
        backoff.succeeded(KEY)
        assert not backoff.needs_help(KEY)


def test_what_never_succeeds_is_tried_for_ever() -> None:
    now_s = [0.0]
    backoff = Backoff(lambda: now_s[0])
    for _ in range(1100):
        backoff.failed(KEY, LoadFailed("its workers were not up"))
    assert backoff.waiting() == {KEY}
    now_s[0] += 61.0
    assert not backoff.waiting()
