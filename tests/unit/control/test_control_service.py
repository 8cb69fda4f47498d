"""Release, rollback and unload over an engine and a gateway in memory: what is promised, what goes
wrong."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import kinds, state
from vlserve.control.assembly import Control
from vlserve.control.domain import State
from vlserve.control.outcomes import Registration
from vlserve.errors import (
    GatewayRefused,
    LoadFailed,
    ModelNotFound,
    NothingToRollBackTo,
    NotReady,
    StillServing,
    VersionNotFound,
)

Archive = Callable[..., Path]
Register = Callable[..., Registration]


def test_release_moves_all_traffic_and_keeps_the_one_before_loaded(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2):
        register(version)
        release = control.service.release("tagger", version)
    assert (release.version, release.previous, release.already_released) == (2, 1, False)
    assert (state(control, 1), state(control, 2)) == (State.READY, State.STABLE)
    assert (gateway.route().weights, gateway.route().versions) == ({2: 100}, (1, 2))
    assert engine.unloads == []


def test_releasing_what_is_released_is_a_no_op(control: Control, register: Register) -> None:
    register(1)
    control.service.release("tagger", 1)
    release = control.service.release("tagger", 1)
    assert (release.already_released, release.previous) == (True, None)
    assert kinds(control).count("released") == 1


def test_rollback_goes_back_one_by_one_until_nothing_is_left(
    control: Control, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2, 3):
        register(version)
        control.service.release("tagger", version)
    rollback = control.service.rollback("tagger")
    assert (rollback.version, rollback.previous) == (2, 3)
    assert gateway.route().weights == {2: 100}
    assert control.service.rollback("tagger").version == 1
    with pytest.raises(NothingToRollBackTo):
        control.service.rollback("tagger")
    assert gateway.route().weights == {1: 100}


def test_rollback_to_a_named_earlier_version_loads_it_first_when_it_is_retired(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2, 3):
        register(version)
        control.service.release("tagger", version)
    control.service.unload("tagger", 1)
    assert ("tagger", 1) not in engine.held["engine-0"]
    rollback = control.service.rollback("tagger", 1)
    assert (rollback.version, rollback.previous) == (1, 3)
    assert gateway.route().weights == {1: 100}
    assert control.service.model("tagger").earlier == ()


def test_traffic_never_moves_onto_a_version_that_answers_wrong(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2):
        register(version)
    control.service.release("tagger", 1)
    engine.answer_wrong.add(("tagger", 2))
    with pytest.raises(NotReady, match=r"tagger 2 is not healthy, so it gets no traffic"):
        control.service.release("tagger", 2)
    engine.answer_wrong.clear()
    control.service.release("tagger", 2)
    engine.answer_wrong.add(("tagger", 1))
    with pytest.raises(NotReady, match="tagger 1 is not healthy"):
        control.service.rollback("tagger")
    assert gateway.route().weights == {2: 100}
    assert control.ledger.model("tagger").stack == (1, 2)


def test_a_release_that_the_gateway_refuses_is_in_no_ledger(
    control: Control, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2):
        register(version)
    control.service.release("tagger", 1)
    gateway.refuse = "no such cluster"
    with pytest.raises(GatewayRefused, match="no such cluster"):
        control.service.release("tagger", 2)
    with pytest.raises(GatewayRefused):
        control.service.unload("tagger", 2)
    assert control.ledger.model("tagger").stack == (1,)
    assert (state(control, 1), state(control, 2)) == (State.STABLE, State.READY)


def test_a_failed_version_gets_no_traffic(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    engine.fail_to_load[("tagger", 1)] = "no such graph"
    with pytest.raises(LoadFailed):
        register(1)
    with pytest.raises(NotReady, match=r"tagger 1 is failed \(no such graph\)"):
        control.service.release("tagger", 1)


def test_what_does_not_exist_is_said_to(control: Control, register: Register) -> None:
    register(1)
    for verb in (control.service.release, control.service.unload, control.service.rollback):
        with pytest.raises(VersionNotFound):
            verb("tagger", 9)
        with pytest.raises(ModelNotFound):
            verb("tager", 1)


def test_unload_closes_the_path_drains_and_retires(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2):
        register(version)
    control.service.release("tagger", 2)
    gateway.flying[("tagger", 1)] = 1
    record = control.service.unload("tagger", 1)
    assert record.state is State.DRAINING
    assert gateway.route().versions == (2,)
    assert engine.unloads == []
    gateway.flying.clear()
    assert control.service.unload("tagger", 1).state is State.RETIRED
    assert engine.unloads == [("tagger", 1)]
    assert control.service.unload("tagger", 1).state is State.RETIRED


def test_what_has_traffic_is_not_unloaded(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    register(1)
    control.service.release("tagger", 1)
    with pytest.raises(StillServing, match="release another version or roll back first"):
        control.service.unload("tagger", 1)
    assert ("tagger", 1) in engine.held["engine-0"]


def test_a_rollback_does_not_wait_for_a_register(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    for version in (1, 2):
        register(version)
        control.service.release("tagger", version)
    engine.loading.clear()
    engine.hold_loads.clear()
    with ThreadPoolExecutor(1) as pool:
        registration = pool.submit(register, 3)
        try:
            assert engine.loading.wait(timeout=30)
            assert control.service.rollback("tagger").version == 1
            assert gateway.route().weights == {1: 100}
            assert not registration.done()
        finally:
            engine.hold_loads.set()
        assert registration.result(timeout=30).state is State.READY
    assert gateway.route().weights == {1: 100}


def test_a_retired_version_that_no_longer_loads_stays_retired(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    register(1)
    control.service.unload("tagger", 1)
    engine.fail_to_load[("tagger", 1)] = "out of memory"
    with pytest.raises(LoadFailed):
        control.service.release("tagger", 1)
    record = control.ledger.version("tagger", 1)
    assert (record.state, record.reason) == (State.RETIRED, "out of memory")


@pytest.mark.parametrize("damage", [b"other bytes", None], ids=["changed", "gone"])
def test_bytes_that_are_not_those_registered_are_never_loaded(
    control: Control, engine: FakeEngine, register: Register, damage: bytes | None
) -> None:
    register(1)
    control.service.unload("tagger", 1)
    archive = control.ledger.version("tagger", 1).archive
    archive.unlink()
    if damage is not None:
        archive.write_bytes(damage)
    with pytest.raises(LoadFailed, match=r"bytes that were registered|1.mar is gone"):
        control.service.release("tagger", 1)
    assert engine.loads == [("tagger", 1)]
    assert state(control, 1) is State.RETIRED
    assert register(1).already_registered
    control.service.release("tagger", 1)
    assert state(control, 1) is State.STABLE
