"""The way back works though the ledger takes no change."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.ledger_troubles import TROUBLES, Trouble, ledger_says, locked
from support.rollout_traffic import (
    Requests,
    drive,
    kinds,
    look,
    register,
    start,
    state,
)
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import RolloutStatus, State
from vlserve.control.store.database import LEDGER
from vlserve.control.store.ledger import Ledger
from vlserve.errors import (
    LedgerFull,
    LedgerUnwritable,
    NoRelease,
    NothingToRollBackTo,
    NotReady,
    StillServing,
)
from vlserve.settings import Settings

Archive = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("locks_end_soon")


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> tuple[Trouble, str]:
    result: tuple[Trouble, str] = request.param
    return result


def test_abort_changes_the_gateway_first_where_the_ledger_takes_no_change(
    tagger: Control, gateway: FakeGateway, requests: Requests, trouble: tuple[Trouble, str]
) -> None:
    start(tagger)
    make, why = trouble
    with make(tagger):
        rollout = tagger.service.rollouts.abort("tagger")
        assert (rollout.status, rollout.weight) == (RolloutStatus.ABORTED, 0)
        assert why in rollout.unrecorded
        assert gateway.route().weights == {1: 100}
        assert gateway.route().step == ""
        assert ledger_says(tagger) == ('{"2": 20, "1": 80}', "running")
        assert look(tagger).status is RolloutStatus.ABORTED
        assert tagger.service.model("tagger").weights == {1: 100}
        messages = [each.message for each in tagger.service.health().troubles]
        assert [each for each in messages if "the ledger does not know it yet" in each]
        assert [each for each in messages if why in each]
        drive(tagger, requests, ticks=2)
        tagger.reconciler.tick()
        assert gateway.route().weights == {1: 100}
        with pytest.raises(NoRelease):
            tagger.service.rollouts.abort("tagger")
        with pytest.raises(LedgerUnwritable, match="went back to 1, and the ledger does not know"):
            start(tagger)
    tagger.reconciler.tick()
    assert ledger_says(tagger) == ('{"1": 100}', "aborted")
    assert kinds(tagger)[-2:] == ["aborted", "recorded_late"]
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.READY)
    assert tagger.service.health().status == "ok"
    assert start(tagger).weight == 20


def test_rollback_changes_the_gateway_first_where_the_ledger_takes_no_change(
    tagger: Control, gateway: FakeGateway, trouble: tuple[Trouble, str]
) -> None:
    tagger.service.release("tagger", 2)
    make, why = trouble
    with make(tagger):
        rollback = tagger.service.rollback("tagger")
        assert (rollback.version, rollback.previous) == (1, 2)
        assert why in rollback.unrecorded
        assert gateway.route().weights == {1: 100}
        model = tagger.service.model("tagger")
        assert (model.stable, model.weights) == (1, {1: 100})
    tagger.reconciler.tick()
    assert tagger.ledger.model("tagger").stack == (1,)
    assert kinds(tagger)[-2:] == ["rolled_back", "recorded_late"]
    assert tagger.service.health().status == "ok"


def test_back_twice_while_the_ledger_takes_no_change(
    tagger: Control, pack: Archive, gateway: FakeGateway
) -> None:
    """The second way back does not make the ledger miss the first."""
    tagger.service.release("tagger", 2)
    register(tagger, pack("tagger", 3))
    tagger.service.rollouts.start("tagger", 3, {})
    with locked(tagger):
        assert tagger.service.rollback("tagger").version == 2
        assert tagger.service.rollback("tagger").version == 1
        assert gateway.route().weights == {1: 100}
        with pytest.raises(NothingToRollBackTo):
            tagger.service.rollback("tagger")
    tagger.reconciler.tick()
    assert gateway.route().weights == {1: 100}
    assert ledger_says(tagger) == ('{"1": 100}', "aborted")
    assert tagger.ledger.model("tagger").stack == (1,)
    assert tagger.service.health().status == "ok"


NO_MODEL = (
    "DELETE FROM models WHERE model = 'newer'",
    "DELETE FROM versions WHERE model = 'newer'",
)
RETIRED = ("UPDATE versions SET state = 'retired' WHERE model = 'newer' AND version = 1",)


@pytest.mark.parametrize("earlier", [NO_MODEL, RETIRED], ids=["before the model", "retired"])
def test_a_change_that_a_ledger_from_a_backup_has_no_place_for_hinders_no_other_model(
    tagger: Control,
    settings: Settings,
    pack: Archive,
    engine: FakeEngine,
    gateway: FakeGateway,
    earlier: tuple[str, ...],
) -> None:
    for version in (1, 2):
        register(tagger, pack("newer", version))
        tagger.service.release("newer", version)
    with locked(tagger):
        assert tagger.service.rollback("newer").unrecorded
    tagger.ledger.close()
    with closing(sqlite3.connect(settings.model_store / LEDGER)) as connection, connection:
        for statement in earlier:
            connection.execute(statement)
    again = assemble(settings, engine, gateway)
    try:
        again.reconciler.tick()
        assert again.service.health().status == "ok"
        again.service.release("tagger", 2)
        assert gateway.route().weights == {2: 100}
        if earlier == RETIRED:
            assert kinds(again, "newer")[-1] == "not_recorded"
    finally:
        again.stop()


def test_a_version_that_went_back_unrecorded_is_not_unloaded(
    tagger: Control, engine: FakeEngine
) -> None:
    """The ledger can be written again, and no tick has told it yet."""
    tagger.service.release("tagger", 2)
    with locked(tagger):
        tagger.service.rollback("tagger")
    with pytest.raises(StillServing, match="tagger 1 has traffic"):
        tagger.service.unload("tagger", 1)
    tagger.reconciler.tick()
    assert engine.unloads == []
    assert ledger_says(tagger)[0] == '{"1": 100}'
    assert (state(tagger, 1), state(tagger, 2)) == (State.STABLE, State.READY)


def test_a_restart_does_not_forget_what_the_ledger_was_not_told(
    tagger: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> None:
    start(tagger)
    with locked(tagger):
        tagger.service.rollouts.abort("tagger")
    gateway.routing = type(gateway.routing)()
    tagger.ledger.close()
    second = assemble(settings, engine, gateway)
    try:
        with locked(second):
            second.reconciler.tick()
            assert gateway.route().weights == {1: 100}
            assert ledger_says(second) == ('{"2": 20, "1": 80}', "running")
        second.reconciler.tick()
        assert ledger_says(second) == ('{"1": 100}', "aborted")
    finally:
        second.stop()
    third = assemble(settings, engine, gateway)
    third.reconciler.tick()
    assert kinds(third).count("recorded_late") == 1
    third.stop()


def test_a_gateway_that_refuses_leaves_nothing_to_tell(
    tagger: Control, gateway: FakeGateway
) -> None:
    start(tagger)
    with locked(tagger):
        gateway.refuse = "busy"
        with pytest.raises(Exception, match="busy"):
            tagger.service.rollouts.abort("tagger")
        gateway.refuse = ""
        assert look(tagger).status is RolloutStatus.RUNNING
        assert gateway.route().weights == {2: 20, 1: 80}


def test_a_release_that_the_ledger_cannot_keep_is_undone_at_the_gateway(
    tagger: Control, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock comes between the gateway's change and the ledger's."""
    database = tagger.ledger.database
    run = database._run

    def run_but_not_commit(
        connection: sqlite3.Connection, statement: str, *values: object
    ) -> object:
        if statement == "COMMIT" and gateway.route().weights == {2: 100}:
            raise LedgerFull("its disk is full")
        return run(connection, statement, *values)

    monkeypatch.setattr(database, "_run", run_but_not_commit)
    with pytest.raises(LedgerFull):
        tagger.service.release("tagger", 2)
    assert gateway.route().weights == {1: 100}
    assert tagger.ledger.model("tagger").stack == (1,)


def test_back_is_refused_once_traffic_moved(
    tagger: Control, pack: Archive, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger.service.release("tagger", 2)
    register(tagger, pack("tagger", 3))
    lifecycle = tagger.service._lifecycle

    def move(_: object) -> None:
        monkeypatch.undo()
        tagger.service.release("tagger", 3)

    monkeypatch.setattr(lifecycle, "check_way_back", move)
    with pytest.raises(NotReady, match="traffic of tagger moved meanwhile"):
        tagger.service.rollback("tagger")
    assert gateway.route().weights == {3: 100}


def test_what_the_ledger_cannot_take_stays_in_no_store(tagger: Control, pack: Archive) -> None:
    with locked(tagger), pytest.raises(LedgerUnwritable):
        register(tagger, pack("tagger", 3))
    assert not (tagger.ledger.store / "tagger" / "3" / "tagger-3.mar").exists()


def test_a_service_stops_though_the_ledger_is_locked(
    tagger: Control, settings: Settings, requests: Requests
) -> None:
    start(tagger)
    tagger.start()
    with locked(tagger):
        tagger.stop()
    Ledger(settings.model_store).close()


def test_a_rollback_waits_for_nothing_that_is_done_to_its_target(
    tagger: Control, gateway: FakeGateway
) -> None:
    """As on another instance, where it is being loaded again."""
    tagger.service.release("tagger", 2)
    with tagger.service._operations.on(("tagger", 1)), ThreadPoolExecutor(1) as pool:
        assert pool.submit(tagger.service.rollback, "tagger").result(timeout=30).version == 1
    assert gateway.route().weights == {1: 100}
