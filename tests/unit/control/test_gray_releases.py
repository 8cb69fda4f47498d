"""A release tick by tick, over an engine and a gateway in memory and real log files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_fakes import FakeEngine, FakeGateway
from gray_traffic import TAGS, Behaviour, Requests

from vlserve.control.assembly import Control, assemble
from vlserve.control.contract import LoadedVersion, ReleaseStatus, Shadow, State
from vlserve.control.gray.views import ReleaseView
from vlserve.errors import (
    GatewayRefused,
    NoRelease,
    NotReady,
    ReleaseUnderWay,
    SettingsError,
    VersionNotFound,
)
from vlserve.settings import Settings

Archive = Callable[..., Path]
QUICK: dict[str, Any] = {
    "weights": [20, 50, 100],
    "hold_s": 0,
    "minimum": {"candidate": 80, "stable": 80, "units": 80, "pairs": 60},
}
POLICY = Path(__file__).parents[3] / "serving_config" / "rollout.yaml"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.config_dir.mkdir()
    shutil.copy(POLICY, settings.config_dir)
    return settings


def register(control: Control, *archives: Path) -> None:
    for archive in archives:
        control.service.register(shutil.copy(archive, control.service.incoming / archive.name))


@pytest.fixture
def tagger(control: Control, packed: Archive) -> Control:
    """tagger 1 stable, tagger 2 ready."""
    register(control, packed("tagger", 1), packed("tagger", 2))
    control.service.release("tagger", 1)
    control.reconciler.tick()
    return control


@pytest.fixture
def requests(settings: Settings, gateway: FakeGateway) -> Requests:
    return Requests(settings.state_dir / "logs", gateway)


def start(control: Control, version: int = 2, **changes: Any) -> ReleaseView:
    return control.service.releases.start("tagger", version, QUICK | changes)


def look(control: Control, model: str = "tagger") -> ReleaseView:
    return control.service.releases.look(model)


def state(control: Control, version: int) -> State:
    return control.ledger.version("tagger", version).state


def kinds(control: Control, model: str = "tagger") -> list[str]:
    return [event.kind for event in control.ledger.events(model)]


def drive(
    control: Control,
    requests: Requests,
    versions: dict[int, Behaviour] | None = None,
    ticks: int = 60,
) -> ReleaseView:
    """Traffic and ticks until the release ends, or for ``ticks``."""
    for _ in range(ticks):
        requests.send(40, versions)
        control.conductor.tick()
        if not look(control).status.under_way:
            break
    return look(control)


def test_a_good_version_goes_all_the_way(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    began = start(tagger)
    assert (began.weight, began.status) == (20, ReleaseStatus.RUNNING)
    assert list(gateway.route().weights.items()) == [(2, 20), (1, 80)]
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.CANARY)
    ended = drive(tagger, requests)
    assert (ended.status, ended.weight) == (ReleaseStatus.PROMOTED, 100)
    weights = [applied.models[0].weights for applied in gateway.applied[-3:]]
    assert weights == [{2: 50, 1: 50}, {2: 100}, {2: 100}]
    assert gateway.route().step == ""
    assert (state(tagger, 1), state(tagger, 2)) == (State.READY, State.STABLE)
    assert tagger.service.rollback("tagger").version == 1


def test_every_decision_is_in_the_ledger_with_its_figures(
    tagger: Control, requests: Requests
) -> None:
    start(tagger)
    drive(tagger, requests)
    decided = [e for e in tagger.ledger.events("tagger") if "action" in e.detail]
    assert [e.kind for e in decided if e.kind != "held"] == ["advanced", "advanced", "released"]
    for event in decided:
        gates = {gate["gate"]: gate for gate in event.detail["gates"]}
        assert gates["errors"]["figures"]["step_candidate"] >= 0
        assert event.detail["reason"]
    assert decided[-1].detail["by"] == "judge"


@pytest.mark.parametrize(
    ("candidate", "gate"),
    [
        (Behaviour(fail_rate=0.2), "errors"),
        (Behaviour(latency_ms=40.0), "latency_p"),
        (Behaviour(scores=lambda chance: {"sport": 0.9}), "tags"),
    ],
    ids=["fails", "slow", "answers differently"],
)
def test_a_bad_version_is_taken_back(
    tagger: Control,
    gateway: FakeGateway,
    requests: Requests,
    candidate: Behaviour,
    gate: str,
) -> None:
    start(tagger)
    ended = drive(tagger, requests, {2: candidate})
    assert (ended.status, ended.weight) == (ReleaseStatus.ROLLED_BACK, 0)
    assert ended.decision is not None
    assert gate in ended.decision.reason
    assert gateway.route().weights == {1: 100}
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.READY)
    (event,) = [e for e in tagger.ledger.events("tagger") if e.kind == "rolled_back"]
    assert (event.version, event.detail["previous"], event.detail["by"]) == (1, 2, "judge")
    assert event.detail["gates"]


def rotated(chance: Any) -> dict[str, float]:
    label = chance.choice(TAGS)
    return {TAGS[(TAGS.index(label) + 1) % len(TAGS)]: 0.9}


def test_a_shadow_gets_copies_before_weight_and_finds_other_answers(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    began = start(tagger, shadow_percent=50)
    assert (began.weights, began.weight, began.shadow_percent) == ((0, 20, 50, 100), 0, 50)
    assert gateway.route().shadow == Shadow(version=2, percent=50)
    assert gateway.route().weights == {1: 100}
    ended = drive(tagger, requests, {2: Behaviour(scores=rotated)})
    assert ended.status is ReleaseStatus.ROLLED_BACK
    assert ended.decision is not None and "agreement" in ended.decision.reason
    assert (gateway.route().shadow, gateway.route().weights) == (None, {1: 100})


def test_a_shadow_that_agrees_is_followed_by_weight(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    start(tagger, shadow_percent=50)
    for _ in range(30):
        requests.send(40)
        tagger.conductor.tick()
        if look(tagger).step:
            break
    assert (look(tagger).weight, gateway.route().shadow) == (20, None)
    pairs = sum(window.pairs for window in look(tagger).windows)
    assert pairs >= 60
    assert sum(window.agreeing for window in look(tagger).windows) == pairs


def test_no_evidence_is_no_reason_to_go_on(tagger: Control) -> None:
    start(tagger)
    for _ in range(5):
        tagger.conductor.tick()
    assert (look(tagger).status, look(tagger).step) == (ReleaseStatus.RUNNING, 0)
    assert kinds(tagger).count("held") == 1  # the same wait is told once


def test_requests_that_an_earlier_step_routed_do_not_count(
    tagger: Control, requests: Requests
) -> None:
    began = start(tagger)
    for number in range(200):
        requests.write(
            "access",
            {"request_id": f"old{number}", "model": "tagger", "version": "2", "status": 500}
            | {"step": f"{began.id - 1}/0", "duration_ms": 1.0},
        )
    tagger.conductor.tick()
    assert look(tagger).windows == ()


def test_evidence_of_before_the_release_does_not_count(tagger: Control, requests: Requests) -> None:
    requests.send(100)
    start(tagger)
    tagger.conductor.tick()
    assert look(tagger).windows == ()


def test_pause_holds_and_an_alarm_still_takes_back(tagger: Control, requests: Requests) -> None:
    start(tagger)
    assert tagger.service.releases.pause("tagger").status is ReleaseStatus.PAUSED
    still = drive(tagger, requests, ticks=30)
    assert (still.status, still.step, still.held_s) == (ReleaseStatus.PAUSED, 0, 0.0)
    assert still.decision is not None and still.decision.reason == "paused by hand"
    assert tagger.service.releases.resume("tagger").status is ReleaseStatus.RUNNING
    tagger.conductor.tick()
    assert look(tagger).step == 1
    tagger.service.releases.pause("tagger")
    ended = drive(tagger, requests, {2: Behaviour(fail_rate=0.3)})
    assert ended.status is ReleaseStatus.ROLLED_BACK
    assert [kind for kind in kinds(tagger) if kind in ("paused", "resumed")] == [
        "paused",
        "resumed",
        "paused",
    ]


def test_promote_and_abort_by_hand(tagger: Control, gateway: FakeGateway) -> None:
    start(tagger)
    aborted = tagger.service.releases.abort("tagger")
    assert (aborted.status, gateway.route().weights) == (ReleaseStatus.ABORTED, {1: 100})
    start(tagger)
    promoted = tagger.service.releases.promote("tagger")
    assert (promoted.status, gateway.route().weights) == (ReleaseStatus.PROMOTED, {2: 100})
    assert tagger.ledger.model("tagger").stack == (1, 2)
    for word in ("pause", "resume", "abort", "promote"):
        with pytest.raises(NoRelease, match="tagger is not being released"):
            getattr(tagger.service.releases, word)("tagger")


def test_rollback_during_a_release_takes_it_back(tagger: Control, gateway: FakeGateway) -> None:
    start(tagger)
    done = tagger.service.rollback("tagger")
    assert (done.version, done.previous) == (1, 2)
    assert (gateway.route().weights, look(tagger).status) == ({1: 100}, ReleaseStatus.ABORTED)


def test_what_a_release_under_way_keeps_others_from(tagger: Control, packed: Archive) -> None:
    register(tagger, packed("tagger", 3))
    start(tagger, shadow_percent=10)
    for refused in (
        lambda: start(tagger, 3),
        lambda: tagger.service.release("tagger", 3),
        lambda: tagger.service.unload("tagger", 2),
        lambda: tagger.service.unload("tagger", 1),
    ):
        with pytest.raises(ReleaseUnderWay, match="tagger 2 is being released"):
            refused()
    assert tagger.service.unload("tagger", 3).state is State.RETIRED


@pytest.mark.parametrize(
    ("version", "changes", "error", "said"),
    [
        (1, {}, NotReady, "is the stable version already"),
        (7, {}, VersionNotFound, "no version 7"),
        (2, {"weights": [50, 5]}, SettingsError, "do not rise"),
        (2, {"weights": [100]}, SettingsError, "cannot be judged"),
        (2, {"hold": 5}, SettingsError, "hold"),
    ],
)
def test_a_release_that_cannot_be_is_refused_and_moves_nothing(
    tagger: Control,
    gateway: FakeGateway,
    version: int,
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        start(tagger, version, **changes)
    assert gateway.route().weights == {1: 100}
    assert "release_started" not in kinds(tagger)


def test_the_first_version_has_nothing_to_be_compared_with(
    control: Control, packed: Archive
) -> None:
    register(control, packed("tagger", 1))
    with pytest.raises(NotReady, match="vlserve release tagger 1 --now"):
        start(control, 1)


def test_a_gateway_that_refuses_leaves_all_as_it_was(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    gateway.refuse = "no such cluster"
    with pytest.raises(GatewayRefused):
        start(tagger)
    gateway.refuse = ""
    assert tagger.ledger.model("tagger").intended is None
    start(tagger)
    gateway.refuse = "busy"
    held = drive(tagger, requests, ticks=20)
    assert (held.step, gateway.route().weights) == (0, {2: 20, 1: 80})
    gateway.refuse = ""
    assert drive(tagger, requests).status is ReleaseStatus.PROMOTED


def test_never_back_onto_a_stable_that_is_not_healthy(
    tagger: Control, engine: FakeEngine, requests: Requests
) -> None:
    start(tagger)
    engine.held["engine-0"][("tagger", 1)] = LoadedVersion(workers_ready=0, pending=0)
    tagger.reconciler.tick()
    held = drive(tagger, requests, {2: Behaviour(fail_rate=0.5)}, ticks=10)
    assert held.status is ReleaseStatus.RUNNING
    assert held.decision is not None and "no rollback onto it" in held.decision.reason
    engine.held["engine-0"][("tagger", 1)] = LoadedVersion(workers_ready=2, pending=0)
    tagger.reconciler.tick()
    tagger.conductor.tick()
    assert look(tagger).status is ReleaseStatus.ROLLED_BACK


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
    tagger.conductor.tick()
    before = look(tagger)
    requests.send(60)  # logged while nobody reads
    restarted = again(tagger, settings, engine, gateway)
    try:
        restarted.reconciler.tick()
        assert gateway.route().weights == {2: 50, 1: 50}
        assert look(restarted).windows == before.windows
        restarted.conductor.tick()
        counted = sum(w.candidate.requests + w.stable.requests for w in look(restarted).windows)
        already = sum(w.candidate.requests + w.stable.requests for w in before.windows)
        assert counted == already + 60
        (event,) = [e for e in restarted.ledger.events("tagger") if e.kind == "release_resumed"]
        assert event.detail == {"restarted": ["the control service"]}
        assert drive(restarted, requests).status is ReleaseStatus.PROMOTED
    finally:
        restarted.stop()


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
        gateway.started = 2000.0
    else:
        engine.starts["engine-0"] += 1
    try:
        control.conductor.tick()  # stable's health may not be known yet
        control.reconciler.tick()
        control.conductor.tick()
        ended = look(control)
        assert ended.status is ReleaseStatus.ROLLED_BACK
        assert ended.decision is not None
        assert ended.decision.reason == f"{what} was restarted, and recovery is rollback"
    finally:
        if control is not tagger:
            control.stop()


def test_a_move_cut_short_by_a_crash_is_known_and_undone(
    tagger: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> None:
    tagger.ledger.intend("tagger", {2: 100})  # then the gateway was told, then the power went
    restarted = again(tagger, settings, engine, gateway)
    try:
        assert restarted.ledger.model("tagger").intended == {2: 100}
        restarted.reconciler.tick()
        assert gateway.route().weights == {1: 100}
        assert restarted.ledger.model("tagger").intended is None
        assert restarted.ledger.events("tagger")[-1].kind == "interrupted"
    finally:
        restarted.stop()


def test_what_was_taken_back_stays_loaded_for_a_while_then_drains(
    tagger: Control, engine: FakeEngine
) -> None:
    start(tagger, keep_s=3600)
    tagger.service.releases.abort("tagger")
    tagger.conductor.tick()
    assert state(tagger, 2) is State.READY
    start(tagger, keep_s=0)
    tagger.service.releases.abort("tagger")
    tagger.conductor.tick()
    assert state(tagger, 2) is State.DRAINING


def test_what_was_taken_back_and_released_again_is_not_let_go(tagger: Control) -> None:
    start(tagger, keep_s=0)
    tagger.service.releases.abort("tagger")
    start(tagger)
    tagger.conductor.tick()
    assert state(tagger, 2) is State.CANARY


def test_two_models_release_without_touching_each_other(
    tagger: Control, packed: Archive, gateway: FakeGateway, requests: Requests
) -> None:
    register(tagger, packed("other", 1), packed("other", 2))
    tagger.service.release("other", 1)
    tagger.reconciler.tick()
    start(tagger)
    tagger.service.releases.start("other", 2, QUICK)
    for _ in range(60):
        requests.send(40, {2: Behaviour(fail_rate=0.3)})
        requests.send(40, model="other")
        tagger.conductor.tick()
    assert look(tagger).status is ReleaseStatus.ROLLED_BACK
    assert look(tagger, "other").status is ReleaseStatus.PROMOTED
    assert (gateway.route().weights, gateway.route("other").weights) == ({1: 100}, {2: 100})


def test_a_release_is_not_forgotten(tagger: Control) -> None:
    with pytest.raises(NoRelease, match="never released in steps"):
        look(tagger)
    began = start(tagger)
    assert look(tagger) == began
    tagger.service.releases.abort("tagger")
    assert look(tagger).ended_at is not None
