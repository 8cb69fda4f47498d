"""The tick over an engine and a gateway in memory: what is mended, and what is left alone."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import LoadedVersion, State
from vlserve.control.lifecycle.backoff import Backoff
from vlserve.errors import LoadFailed
from vlserve.settings import Settings

Archive = Callable[..., Path]


@pytest.fixture
def tagger(control: Control, pack: Archive) -> Control:
    """tagger 1 stable, tagger 2 ready."""
    for version in (1, 2):
        register(control, pack("tagger", version))
    control.service.release("tagger", 1)
    return control


def register(control: Control, archive: Path) -> None:
    control.service.register(shutil.copy(archive, control.service.incoming / archive.name))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30  # a busy machine
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold within 30 s"
        time.sleep(0.01)


def kinds(control: Control, model: str = "tagger") -> list[str]:
    return [event.kind for event in control.ledger.events(model)]


def test_a_tick_over_a_good_world_changes_nothing(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    history, count = kinds(tagger), len(gateway.applied)
    for _ in range(3):
        tagger.reconciler.tick()
    assert (kinds(tagger), len(gateway.applied)) == (history, count)
    assert engine.loads == [("tagger", 1), ("tagger", 2)]


def test_a_bare_engine_gets_its_versions_and_the_gateway_the_new_token(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    engine.restart_bare("engine-0")
    tagger.start()
    eventually(lambda: set(engine.held["engine-0"]) == {("tagger", 1), ("tagger", 2)})
    eventually(lambda: gateway.routing.instances[0].token == "token-2")
    eventually(lambda: not gateway.routing.instances[0].lacks)
    assert gateway.route().weights == {1: 100}
    assert tagger.ledger.version("tagger", 1).state is State.STABLE
    eventually(lambda: kinds(tagger).count("recovered") == 2)
    gaps = [routing.instances[0].lacks for routing in gateway.applied]
    assert frozenset({("tagger", 1), ("tagger", 2)}) in gaps


def test_the_access_log_is_looked_after_at_every_tick(
    tagger: Control, gateway: FakeGateway
) -> None:
    tagger.start()
    eventually(lambda: gateway.asked_to_rotate > 2)


def test_a_gateway_that_lost_its_routing_gets_it_again(
    tagger: Control, gateway: FakeGateway
) -> None:
    routing = gateway.routing
    gateway.refuse = "not there"
    tagger.reconciler.tick()
    gateway.refuse, gateway.routing = "", type(routing)()
    tagger.reconciler.tick()
    assert gateway.routing == routing


def test_an_engine_that_is_away_takes_no_traffic_away(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    before = gateway.routing
    engine.down.add("engine-0")
    tagger.reconciler.tick()
    assert gateway.routing == before
    assert tagger.service.health().status == "no engine instance answers"
    assert kinds(tagger)[-1] == "released"


def test_what_the_ledger_does_not_know_is_removed(tagger: Control, engine: FakeEngine) -> None:
    engine.held["engine-0"][("stray", 1)] = LoadedVersion(0, 0)
    tagger.start()
    eventually(lambda: engine.unloads == [("stray", 1)])


def test_a_load_cut_short_by_a_crash_is_finished(
    settings: Settings, engine: FakeEngine, gateway: FakeGateway, pack: Archive
) -> None:
    control = assemble(settings, engine, gateway)
    engine.hold_loads.clear()
    thread = threading.Thread(target=register, args=(control, pack()), daemon=True)
    thread.start()
    assert engine.loading.wait(timeout=30)
    control.ledger.close()  # as SIGKILL would: nothing is written from here on
    engine.hold_loads.set()
    errors: list[object] = []
    threading.excepthook, hook = lambda args: errors.append(args), threading.excepthook
    thread.join()
    threading.excepthook = hook
    assert errors

    second = assemble(settings, engine, gateway)
    assert second.ledger.version("tagger", 1).state is State.LOADING
    second.start()
    eventually(lambda: second.ledger.version("tagger", 1).state is State.READY)
    assert gateway.route().versions == (1,)
    second.stop()


def test_a_drain_that_outlasts_its_user_is_finished(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway
) -> None:
    gateway.flying[("tagger", 2)] = 1
    assert tagger.service.unload("tagger", 2).state is State.DRAINING
    tagger.start()
    assert engine.unloads == []
    gateway.flying.clear()
    eventually(lambda: tagger.ledger.version("tagger", 2).state is State.RETIRED)
    assert engine.unloads == [("tagger", 2)]


def test_a_damaged_archive_is_not_restored(tagger: Control, engine: FakeEngine) -> None:
    tagger.ledger.version("tagger", 2).archive.write_bytes(b"other bytes")
    engine.restart_bare("engine-0")
    tagger.start()
    eventually(lambda: kinds(tagger)[-1] == "restore_failed")
    assert set(engine.held["engine-0"]) == {("tagger", 1)}


def test_one_model_that_cannot_come_back_does_not_stop_the_others(
    tagger: Control, engine: FakeEngine, gateway: FakeGateway, pack: Archive
) -> None:
    register(tagger, pack("another", 1))
    engine.fail_to_load[("another", 1)] = "out of memory"
    engine.restart_bare("engine-0")
    tagger.start()
    eventually(lambda: set(engine.held["engine-0"]) == {("tagger", 1), ("tagger", 2)})
    eventually(lambda: kinds(tagger, "another")[-1] == "restore_failed")
    eventually(lambda: gateway.routing.instances[0].lacks == frozenset({("another", 1)}))


def test_a_failure_that_repeats_is_told_once_and_tried_more_and_more_rarely() -> None:
    now = 0.0
    backoff = Backoff(lambda: now)
    key = ("tagger", 1)
    waits = []
    for attempt in range(8):
        assert backoff.failed(key, LoadFailed("out of memory")) is (attempt == 0)
        start = now
        while key in backoff.waiting():
            now += 0.5
        waits.append(now - start)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.failed(key, LoadFailed("another reason"))
    backoff.succeeded(key)
    assert backoff.failed(key, LoadFailed("another reason"))


def test_a_failure_that_is_told_while_it_is_asked_who_waits() -> None:
    tellers: list[threading.Thread] = []
    question = threading.Event()

    def now() -> float:
        """As if another thread's turn came in the midst of the question."""
        if question.is_set() and not tellers:
            tellers.append(
                threading.Thread(target=backoff.failed, args=(("b", 1), LoadFailed("reason")))
            )
            tellers[0].start()
            tellers[0].join(timeout=0.05)
        return 0.0

    backoff = Backoff(now)
    for version in (1, 2):
        backoff.failed(("a", version), LoadFailed("reason"))
    question.set()
    assert backoff.waiting() == {("a", 1), ("a", 2)}
    tellers[0].join()
    assert backoff.waiting() == {("a", 1), ("a", 2), ("b", 1)}


def test_an_operation_of_the_user_is_not_disturbed(
    tagger: Control, engine: FakeEngine, pack: Archive
) -> None:
    tagger.start()
    engine.loading.clear()
    engine.hold_loads.clear()
    user = threading.Thread(target=register, args=(tagger, pack("tagger", 3)))
    user.start()
    assert engine.loading.wait(timeout=30)
    for _ in range(5):
        assert tagger.reconciler.tick()[1:] == []
    engine.hold_loads.set()
    user.join()
    assert engine.loads.count(("tagger", 3)) == 1


def test_a_version_that_fails_to_load_is_not_tried_again_by_itself(
    control: Control, engine: FakeEngine, pack: Archive
) -> None:
    engine.fail_to_load[("tagger", 1)] = "no such graph"
    with pytest.raises(LoadFailed):
        register(control, pack())
    control.reconciler.tick()
    assert control.reconciler.tick()[1:] == []
    assert engine.loads == [("tagger", 1)]


def test_one_bare_instance_of_two_costs_nothing_but_its_share(
    settings: Settings, gateway: FakeGateway, pack: Archive
) -> None:
    """While an instance reloads, the other has the traffic, and a rollback does not wait."""
    engine = FakeEngine(("engine-0", "engine-1"))
    control = assemble(settings, engine, gateway)
    for version in (1, 2):
        register(control, pack("tagger", version))
        control.service.release("tagger", version)
    engine.restart_bare("engine-1")
    engine.hold_loads.clear()
    control.start()
    both = frozenset({("tagger", 1), ("tagger", 2)})
    eventually(lambda: [each.lacks for each in gateway.routing.instances] == [frozenset(), both])
    assert control.service.health().restoring == ("tagger 1", "tagger 2")
    assert control.service.rollback("tagger").version == 1
    assert gateway.route().weights == {1: 100}
    engine.hold_loads.set()
    eventually(lambda: not any(each.lacks for each in gateway.routing.instances))
    assert set(engine.held["engine-1"]) == both
    control.stop()
