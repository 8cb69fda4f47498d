"""A release tick by tick, over an engine and a gateway in memory and real log files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import (
    QUICK,
    TAGS,
    Behaviour,
    Requests,
    drive,
    kinds,
    look,
    register,
    start,
    state,
)
from vlserve.control.assembly import Control
from vlserve.control.domain import LoadedVersion, RolloutStatus, Shadow, State
from vlserve.errors import (
    GatewayRefused,
    NoRelease,
    NotReady,
    ReleaseUnderWay,
    SettingsError,
    VersionNotFound,
)

Archive = Callable[..., Path]


def test_a_good_version_goes_all_the_way(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    first = start(tagger)
    assert (first.weight, first.status) == (20, RolloutStatus.RUNNING)
    assert list(gateway.route().weights.items()) == [(2, 20), (1, 80)]
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.CANARY)
    last = drive(tagger, requests)
    assert (last.status, last.weight) == (RolloutStatus.PROMOTED, 100)
    weights = [routing.models[0].weights for routing in gateway.applied[-3:]]
    assert weights == [{2: 50, 1: 50}, {2: 100}, {2: 100}]
    assert gateway.route().step == ""
    assert (state(tagger, 1), state(tagger, 2)) == (State.READY, State.STABLE)
    assert tagger.service.rollback("tagger").version == 1


def test_every_decision_is_in_the_ledger_with_its_figures(
    tagger: Control, requests: Requests
) -> None:
    start(tagger)
    drive(tagger, requests)
    events = [event for event in tagger.ledger.events("tagger") if "action" in event.detail]
    assert [event.kind for event in events if event.kind != "held"] == [
        "advanced",
        "advanced",
        "released",
    ]
    for event in events:
        gates = {gate["gate"]: gate for gate in event.detail["gates"]}
        assert gates["errors"]["figures"]["step_candidate"] >= 0
        assert event.detail["reason"]
    assert events[-1].detail["by"] == "judge"


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
    view = drive(tagger, requests, {2: candidate})
    assert (view.status, view.weight) == (RolloutStatus.ROLLED_BACK, 0)
    assert view.decision is not None
    assert gate in view.decision.reason
    assert gateway.route().weights == {1: 100}
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.READY)
    (event,) = [event for event in tagger.ledger.events("tagger") if event.kind == "rolled_back"]
    assert (event.version, event.detail["previous"], event.detail["by"]) == (1, 2, "judge")
    assert event.detail["gates"]


def rotated(chance: Any) -> dict[str, float]:
    label = chance.choice(TAGS)
    return {TAGS[(TAGS.index(label) + 1) % len(TAGS)]: 0.9}


def test_a_shadow_gets_copies_before_weight_and_finds_other_answers(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    first = start(tagger, shadow_percent=50)
    assert (first.weights, first.weight, first.shadow_percent) == ((0, 20, 50, 100), 0, 50)
    assert gateway.route().shadow == Shadow(version=2, percent=50)
    assert gateway.route().weights == {1: 100}
    last = drive(tagger, requests, {2: Behaviour(scores=rotated)})
    assert last.status is RolloutStatus.ROLLED_BACK
    assert last.decision is not None and "agreement" in last.decision.reason
    assert (gateway.route().shadow, gateway.route().weights) == (None, {1: 100})


def test_a_shadow_that_agrees_is_followed_by_weight(
    tagger: Control, gateway: FakeGateway, requests: Requests
) -> None:
    start(tagger, shadow_percent=50)
    for _ in range(30):
        requests.send(40)
        tagger.rollout_loop.tick()
        if look(tagger).step:
            break
    assert (look(tagger).weight, gateway.route().shadow) == (20, None)
    pairs = sum(window.pairs for window in look(tagger).windows)
    assert pairs >= 60
    assert sum(window.agreeing for window in look(tagger).windows) == pairs


def test_a_release_says_at_once_what_it_waits_for(tagger: Control) -> None:
    rollout = start(tagger, hold_s=60)
    assert rollout.decision is not None
    assert rollout.decision.reason.startswith(
        "held for 0 of 60 s; errors waits for requests to the"
    )
    assert "0 of 80" in rollout.decision.reason


def test_no_evidence_is_no_reason_to_go_on(tagger: Control) -> None:
    start(tagger)
    for _ in range(5):
        tagger.rollout_loop.tick()
    assert (look(tagger).status, look(tagger).step) == (RolloutStatus.RUNNING, 0)
    assert kinds(tagger).count("held") == 1  # the same wait is told once


def test_requests_that_an_earlier_step_routed_do_not_count(
    tagger: Control, requests: Requests
) -> None:
    rollout = start(tagger)
    for number in range(200):
        requests.write(
            "access",
            {"request_id": f"old{number}", "model": "tagger", "version": "2", "status": 500}
            | {"step": f"{rollout.id - 1}/0", "duration_ms": 1.0},
        )
    tagger.rollout_loop.tick()
    assert look(tagger).windows == ()


def test_evidence_of_before_the_release_does_not_count(tagger: Control, requests: Requests) -> None:
    requests.send(100)
    start(tagger)
    tagger.rollout_loop.tick()
    assert look(tagger).windows == ()


def test_pause_holds_and_an_alarm_still_takes_back(tagger: Control, requests: Requests) -> None:
    start(tagger)
    assert tagger.service.rollouts.pause("tagger").status is RolloutStatus.PAUSED
    first = drive(tagger, requests, ticks=30)
    assert (first.status, first.step, first.held_s) == (RolloutStatus.PAUSED, 0, 0.0)
    assert first.decision is not None and first.decision.reason == "paused by hand"
    assert tagger.service.rollouts.resume("tagger").status is RolloutStatus.RUNNING
    tagger.rollout_loop.tick()
    assert look(tagger).step == 1
    tagger.service.rollouts.pause("tagger")
    last = drive(tagger, requests, {2: Behaviour(fail_rate=0.3)})
    assert last.status is RolloutStatus.ROLLED_BACK
    assert [kind for kind in kinds(tagger) if kind in ("paused", "resumed")] == [
        "paused",
        "resumed",
        "paused",
    ]


def test_promote_and_abort_by_hand(tagger: Control, gateway: FakeGateway) -> None:
    start(tagger)
    abort = tagger.service.rollouts.abort("tagger")
    assert (abort.status, gateway.route().weights) == (RolloutStatus.ABORTED, {1: 100})
    start(tagger)
    promotion = tagger.service.rollouts.promote("tagger")
    assert (promotion.status, gateway.route().weights) == (RolloutStatus.PROMOTED, {2: 100})
    assert tagger.ledger.model("tagger").stack == (1, 2)
    for word in ("pause", "resume", "abort", "promote"):
        with pytest.raises(NoRelease, match="tagger is not being released"):
            getattr(tagger.service.rollouts, word)("tagger")


def test_rollback_during_a_release_takes_it_back(tagger: Control, gateway: FakeGateway) -> None:
    start(tagger)
    rollback = tagger.service.rollback("tagger")
    assert (rollback.version, rollback.previous) == (1, 2)
    assert (gateway.route().weights, look(tagger).status) == ({1: 100}, RolloutStatus.ABORTED)


def test_what_a_release_under_way_keeps_others_from(tagger: Control, pack: Archive) -> None:
    register(tagger, pack("tagger", 3))
    start(tagger, shadow_percent=10)
    for verb in (
        lambda: start(tagger, 3),
        lambda: tagger.service.release("tagger", 3),
        lambda: tagger.service.unload("tagger", 2),
        lambda: tagger.service.unload("tagger", 1),
    ):
        with pytest.raises(ReleaseUnderWay, match="tagger 2 is being released"):
            verb()
    assert tagger.service.unload("tagger", 3).state is State.RETIRED


@pytest.mark.parametrize(
    ("version", "changes", "error", "message"),
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
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        start(tagger, version, **changes)
    assert gateway.route().weights == {1: 100}
    assert "release_started" not in kinds(tagger)


def test_the_first_version_has_nothing_to_be_compared_with(control: Control, pack: Archive) -> None:
    register(control, pack("tagger", 1))
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
    view = drive(tagger, requests, ticks=20)
    assert (view.step, gateway.route().weights) == (0, {2: 20, 1: 80})
    gateway.refuse = ""
    assert drive(tagger, requests).status is RolloutStatus.PROMOTED


def test_never_back_onto_a_stable_that_is_not_healthy(
    tagger: Control, engine: FakeEngine, requests: Requests
) -> None:
    start(tagger)
    engine.held["engine-0"][("tagger", 1)] = LoadedVersion(workers_ready=0, pending=0)
    tagger.reconciler.tick()
    view = drive(tagger, requests, {2: Behaviour(fail_rate=0.5)}, ticks=10)
    assert view.status is RolloutStatus.RUNNING
    assert view.decision is not None and "no rollback onto it" in view.decision.reason
    engine.held["engine-0"][("tagger", 1)] = LoadedVersion(workers_ready=2, pending=0)
    tagger.reconciler.tick()
    tagger.rollout_loop.tick()
    assert look(tagger).status is RolloutStatus.ROLLED_BACK


def test_what_was_taken_back_stays_loaded_for_a_while_then_drains(
    tagger: Control, engine: FakeEngine
) -> None:
    start(tagger, keep_s=3600)
    tagger.service.rollouts.abort("tagger")
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.READY
    start(tagger, keep_s=0)
    tagger.service.rollouts.abort("tagger")
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.DRAINING


def test_what_was_taken_back_and_released_again_is_not_let_go(tagger: Control) -> None:
    start(tagger, keep_s=0)
    tagger.service.rollouts.abort("tagger")
    start(tagger)
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.CANARY


def test_two_models_release_without_touching_each_other(
    tagger: Control, pack: Archive, gateway: FakeGateway, requests: Requests
) -> None:
    register(tagger, pack("other", 1), pack("other", 2))
    tagger.service.release("other", 1)
    tagger.reconciler.tick()
    start(tagger)
    tagger.service.rollouts.start("other", 2, QUICK)
    for _ in range(60):
        requests.send(40, {2: Behaviour(fail_rate=0.3)})
        requests.send(40, model="other")
        tagger.rollout_loop.tick()
    assert look(tagger).status is RolloutStatus.ROLLED_BACK
    assert look(tagger, "other").status is RolloutStatus.PROMOTED
    assert (gateway.route().weights, gateway.route("other").weights) == ({1: 100}, {2: 100})


def test_a_release_is_not_forgotten(tagger: Control) -> None:
    with pytest.raises(NoRelease, match="never released in steps"):
        look(tagger)
    rollout = start(tagger)
    assert look(tagger) == rollout
    tagger.service.rollouts.abort("tagger")
    assert look(tagger).ended_at is not None


def test_what_clients_ask_wrongly_counts_for_the_split_alone(
    tagger: Control, requests: Requests
) -> None:
    """A candidate that accepts what stable refuses is no worse, and gets no more requests."""
    start(tagger, weights=[50, 100])
    view = drive(tagger, requests, {1: Behaviour(refuse_rate=0.3)})
    assert view.status is RolloutStatus.PROMOTED


def test_a_client_cannot_speak_as_evidence(tagger: Control, requests: Requests) -> None:
    rollout = start(tagger)
    for number in range(100):
        requests.write(
            "access",
            {"request_id": f"x{number}", "model": "other", "version": "2", "status": 500}
            | {"step": None, "caller": f"{rollout.id}/0", "duration_ms": 1.0},
        )
    tagger.rollout_loop.tick()
    assert look(tagger).windows == ()


def test_a_later_keep_is_not_cut_short_by_an_earlier_one(tagger: Control) -> None:
    for keep_s in (0, 3600):
        start(tagger, keep_s=keep_s)
        tagger.service.rollouts.abort("tagger")
    tagger.rollout_loop.tick()
    assert state(tagger, 2) is State.READY
