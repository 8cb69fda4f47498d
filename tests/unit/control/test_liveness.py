"""What hangs is told and killed, what is slow or dead is not: over an engine and a gateway in
memory, with a clock of the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import register
from vlserve.control.assembly import Control
from vlserve.control.domain import Reply
from vlserve.control.reconcile.liveness import LATE_S, Liveness, Pulse, longest_wait_s
from vlserve.errors import StackError
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

Archive = Callable[..., Path]
LIMIT_S = 20.0


class Watch:
    """Liveness whose questions are answered at once, or not at all after what they may take."""

    def __init__(self, control: Control, engine: FakeEngine, gateway: FakeGateway) -> None:
        self.now_s = 100.0
        self.killed: list[str] = []
        self.cannot_kill = ""
        self.control = control
        self.liveness = Liveness(
            control.ledger,
            engine,
            gateway,
            control.service._traffic,
            EngineSettings(workers=2, hang_timeout_s=LIMIT_S),
            self._kill,
            now=lambda: self.now_s,
            beside=lambda work: work(),
        )

    def _kill(self, name: str) -> None:
        if self.cannot_kill:
            raise StackError(self.cannot_kill)
        self.killed.append(name)

    def look_for(self, seconds: float) -> None:
        until = self.now_s + seconds
        while self.now_s < until:
            self.liveness.look()
            self.now_s += 1.0

    def told(self) -> list[str]:
        return [trouble.message for trouble in self.liveness.troubles()]


@pytest.fixture
def watch(tagger: Control, engine: FakeEngine, gateway: FakeGateway) -> Watch:
    return Watch(tagger, engine, gateway)


def test_who_answers_is_left_alone(watch: Watch) -> None:
    watch.look_for(100)
    assert (watch.killed, watch.told()) == ([], [])


def test_an_instance_that_answers_nothing_is_told_and_then_killed(
    watch: Watch, engine: FakeEngine
) -> None:
    watch.look_for(3)
    engine.hung.add("engine-0")
    watch.look_for(LIMIT_S - 3)
    assert watch.killed == []
    assert "engine-0 takes questions and answers none" in watch.told()
    watch.look_for(6)
    assert watch.killed == ["engine-0"]
    engine.hung.clear()
    watch.look_for(10)
    assert (watch.killed, watch.told()) == (["engine-0"], [])


def test_one_that_is_dead_is_supervisords(watch: Watch, engine: FakeEngine) -> None:
    engine.down.add("engine-0")
    watch.look_for(5 * LIMIT_S)
    assert watch.killed == []


def test_what_cannot_be_killed_is_told_and_tried_again(watch: Watch, engine: FakeEngine) -> None:
    engine.hung.add("engine-0")
    watch.cannot_kill = "no supervisord answers"
    watch.look_for(LIMIT_S + 5)
    assert any("cannot be started anew: no supervisord" in message for message in watch.told())
    watch.cannot_kill = ""
    watch.look_for(60)
    assert watch.killed[0] == "engine-0"


def test_that_it_cannot_be_killed_is_told_as_long_as_its_predictions_hang(
    watch: Watch, engine: FakeEngine
) -> None:
    """Its other questions are answered meanwhile."""
    engine.predicts_nothing.add("engine-0")
    watch.cannot_kill = "no supervisord answers"
    watch.look_for(LIMIT_S + 5)
    assert any("cannot be started anew: no supervisord" in message for message in watch.told())
    engine.predicts_nothing.clear()
    watch.look_for(60)
    assert not any("cannot be started anew" in message for message in watch.told())


def test_a_late_prediction_is_told_and_no_reason_to_kill_while_it_may_wait_in_the_queue(
    watch: Watch, engine: FakeEngine
) -> None:
    """The management port answers: the instance lives."""
    pulse = Pulse()
    pulse.begin(now=0.0)
    assert pulse.waits_s(LATE_S + 1) > LATE_S
    assert not pulse.hangs(10 * LATE_S, limit_s=0.0)
    pulse.end(Reply.NONE_IN_TIME, now=240.0, period_s=5.0)
    assert pulse.hangs(240.0, limit_s=0.0)


def test_an_instance_that_predicts_nothing_for_the_longest_queue_is_killed(
    watch: Watch, engine: FakeEngine
) -> None:
    engine.predicts_nothing.add("engine-0")
    watch.look_for(1)
    assert engine.asked_for == [
        ("engine-0", ("tagger", 1), longest_wait_s(EngineSettings(workers=2)))
    ]
    watch.look_for(1)
    assert watch.killed == ["engine-0"]


def test_the_longest_wait_is_a_full_queue_of_the_slowest_batches() -> None:
    settings = EngineSettings(workers=2, batch_size=8, queue_size=100, response_timeout_s=30)
    assert longest_wait_s(settings) == 30.0 * (1 + 7)


def test_predictions_are_asked_for_seldom(watch: Watch, engine: FakeEngine) -> None:
    watch.look_for(60)
    assert 10 <= len(engine.asked_for) <= 13
    assert {key for _, key, _ in engine.asked_for} == {("tagger", 1)}  # the one with traffic
    slow = Pulse()
    slow.begin(now=0.0)
    slow.end(Reply.ANSWERED, now=2.0, period_s=5.0)
    assert slow.due_at == 2.0 + 20 * 2.0


def test_a_gateway_that_answers_no_client_is_told_and_killed_only_where_it_hangs(
    watch: Watch, gateway: FakeGateway
) -> None:
    gateway.to_clients = Reply.GONE  # drained, or all its connections taken
    watch.look_for(3 * LIMIT_S)
    assert watch.killed == []
    assert watch.told() == ["the gateway does not answer its clients: connection refused"]
    gateway.to_clients = Reply.NONE_IN_TIME
    watch.look_for(LIMIT_S + 3)
    assert watch.killed == ["gateway"]


def test_health_says_what_liveness_found(
    control: Control, gateway: FakeGateway, pack: Archive, settings: Settings
) -> None:
    register(control, pack("tagger", 1))
    gateway.to_clients = Reply.GONE
    control.liveness.look()
    attempts = 200
    while "does not answer its clients" not in control.service.health().status and attempts:
        control.liveness.look()
        attempts -= 1
    assert "does not answer its clients" in control.service.health().status
