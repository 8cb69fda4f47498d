"""Releases in which something is killed: what is counted, what is decided, what is known."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import (
    Behaviour,
    Requests,
    drive,
    kinds,
    look,
    register,
    start,
    state,
)
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import LoadedVersion, RolloutStatus, State
from vlserve.settings import Settings


def again(
    control: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> Control:
    """The control service after a kill: nothing of the old process is left but the ledger."""
    control.ledger.close()
    return assemble(settings, engine, gateway)


def test_a_killed_control_service_goes_on_from_its_step_with_its_evidence(
    tagger: Control,
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    requests: Requests,
) -> None:
    start(tagger)
    while look(tagger).step == 0:
        drive(tagger, requests, ticks=1)
    requests.send(60)
    tagger.rollout_loop.tick()
    before = look(tagger)
    requests.send(60)  # logged while nobody reads
    control = again(tagger, settings, engine, gateway)
    try:
        control.reconciler.tick()
        assert gateway.route().weights == {2: 50, 1: 50}
        assert look(control).windows == before.windows
        control.rollout_loop.tick()
        count = sum(
            window.candidate.requests + window.stable.requests for window in look(control).windows
        )
        count_before = sum(
            window.candidate.requests + window.stable.requests for window in before.windows
        )
        assert count == count_before + 60
        (event,) = [
            event for event in control.ledger.events("tagger") if event.kind == "release_resumed"
        ]
        assert event.detail == {"restarted": ["the control service"]}
        assert drive(control, requests).status is RolloutStatus.PROMOTED
    finally:
        control.stop()


@pytest.mark.parametrize("what", ["the control service", "the gateway", "engine-0"])
def test_recovery_by_rollback(
    tagger: Control,
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    requests: Requests,
    what: str,
) -> None:
    start(tagger, recovery="rollback")
    drive(tagger, requests, ticks=2)
    control = tagger
    if what == "the control service":
        control = again(tagger, settings, engine, gateway)
    elif what == "the gateway":
        gateway.started = "its second"
    else:
        engine.starts["engine-0"] += 1
    try:
        control.rollout_loop.tick()  # stable's health may not be known yet
        control.reconciler.tick()
        control.rollout_loop.tick()
        view = look(control)
        assert view.status is RolloutStatus.ROLLED_BACK
        assert view.decision is not None
        assert view.decision.reason == f"{what} was restarted, and recovery is rollback"
    finally:
        if control is not tagger:
            control.stop()


def test_a_move_cut_short_by_a_crash_is_known_and_undone(
    tagger: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> None:
    tagger.ledger.intend("tagger", {2: 100})  # then the gateway was told, then the power went
    control = again(tagger, settings, engine, gateway)
    try:
        assert control.ledger.model("tagger").intended == {2: 100}
        control.reconciler.tick()
        assert gateway.route().weights == {1: 100}
        assert control.ledger.model("tagger").intended is None
        assert control.ledger.events("tagger")[-1].kind == "interrupted"
    finally:
        control.stop()


@pytest.mark.parametrize("shadow_percent", [0, 50])
def test_a_version_that_comes_back_later_than_the_other_is_not_blamed(
    tagger: Control, engine: FakeEngine, requests: Requests, shadow_percent: int
) -> None:
    """After a restart of the engine stable is loaded first; until the candidate is back, all that
    goes there fails."""
    start(tagger, shadow_percent=shadow_percent)
    drive(tagger, requests, ticks=1)
    engine.restart_bare("engine-0")
    engine.held["engine-0"][("tagger", 1)] = LoadedVersion(workers_ready=2, pending=0)
    tagger.reconciler.tick()
    requests.send(200, {2: Behaviour(fail_rate=1.0)})
    tagger.rollout_loop.tick()
    engine.held["engine-0"][("tagger", 2)] = LoadedVersion(workers_ready=2, pending=0)
    tagger.reconciler.tick()
    requests.send(50, {2: Behaviour(fail_rate=1.0)})  # logged a little later
    tagger.rollout_loop.tick()
    view = look(tagger)
    assert view.status is RolloutStatus.RUNNING
    assert view.decision is not None
    assert {gate.verdict for gate in view.decision.gates} <= {"waiting", "clear"}


def test_what_is_logged_while_the_engine_does_not_answer_is_read_later(
    tagger: Control, engine: FakeEngine, requests: Requests
) -> None:
    start(tagger)
    engine.down.add("engine-0")
    tagger.reconciler.tick()
    requests.send(30)
    tagger.rollout_loop.tick()
    assert look(tagger).windows == ()
    engine.down.clear()
    tagger.reconciler.tick()
    tagger.rollout_loop.tick()
    assert (
        sum(window.candidate.requests + window.stable.requests for window in look(tagger).windows)
        == 30
    )


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
def test_a_step_of_the_clock_is_no_restart_and_no_time_that_passed(
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    requests: Requests,
    pack: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
) -> None:
    offset, real = 0.0, time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    control = assemble(settings, engine, gateway)
    try:
        register(control, pack("tagger", 1), pack("tagger", 2))
        control.service.release("tagger", 1)
        control.reconciler.tick()
        start(control, hold_s=3600, recovery="rollback")
        drive(control, requests, ticks=2)
        offset = step_s
        view = drive(control, requests, ticks=20)
        assert (view.status, view.step) == (RolloutStatus.RUNNING, 0)
        assert view.held_s < 600
        assert view.decision is not None and "of 3600 s" in view.decision.reason
        assert "release_resumed" not in kinds(control)
    finally:
        control.stop()


def test_a_step_of_the_clock_takes_no_candidate_away_that_is_kept(
    tagger: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tagger, keep_s=600)
    tagger.service.rollouts.abort("tagger")
    tagger.rollout_loop.tick()
    candidates = tagger.rollout_loop._kept
    real = time.time
    monkeypatch.setattr(candidates, "_now", lambda: real() + 7200)
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.READY
    moment = time.monotonic() + 700
    monkeypatch.setattr(candidates, "_now", lambda: real() - 7200)
    monkeypatch.setattr(candidates, "_clock", lambda: moment)
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.DRAINING
