"""A ledger that is gone, empty or damaged: nothing is begun on it, what serves goes on, the way
back works, and it can be made anew from the archives and the gateway's last routes."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.rollout_traffic import kinds, look, register, start
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import ModelRoute, RolloutStatus, Routing, State
from vlserve.control.gateway.envoy_config import discovery
from vlserve.control.gateway.envoy_routes import routes
from vlserve.control.gateway.last_routes import LastRoute, last_routes, routes_file
from vlserve.control.lifecycle.rebuilding import rebuild_ledger
from vlserve.control.store.database import LEDGER
from vlserve.control.store.kept_archives import refuse_lost_ledger
from vlserve.control.store.ledger import Ledger
from vlserve.errors import ControlError, LedgerDamaged, LedgerLost
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import containers

Archive = Callable[..., Path]


def remove(ledger: Path) -> None:
    for file in ledger.parent.glob(f"{LEDGER}*"):
        file.unlink()


def empty(ledger: Path) -> None:
    remove(ledger)
    ledger.touch()


def without_versions(ledger: Path) -> None:
    remove(ledger)
    Ledger(ledger.parent, anew=True).close()


def no_ledger(ledger: Path) -> None:
    ledger.write_bytes(b"not a ledger at all " * 1000)


def cut(ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes()[:9000])


def overwritten_within(ledger: Path) -> None:
    content = bytearray(ledger.read_bytes())
    content[4096 : 4096 * 6] = b"\xa5" * 4096 * 5
    ledger.write_bytes(content)


LOST = [remove, empty, without_versions]
DAMAGED = [no_ledger, cut, overwritten_within]


@pytest.fixture
def ledger_file(tagger: Control, settings: Settings, gateway: FakeGateway, pack: Archive) -> Path:
    """tagger 1 stable, 2 ready, other 1 without path; the service is down. Its ledger."""
    register(tagger, pack("other", 1))
    tagger.service.unload("other", 1)
    keep_routes(settings, gateway.routing)
    tagger.stop()
    return settings.model_store / LEDGER


def keep_routes(settings: Settings, routing: Routing) -> None:
    """What the real gateway leaves."""
    file = routes_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(discovery([routes(routing, settings)]), encoding="utf-8")


@pytest.mark.parametrize("lose", LOST)
def test_a_lost_ledger_is_not_begun_anew(ledger_file: Path, lose: Callable[[Path], None]) -> None:
    lose(ledger_file)
    before = sorted(ledger_file.parent.iterdir())
    for opener in (refuse_lost_ledger, Ledger):
        with pytest.raises(LedgerLost, match=r"3 archives lie in .*`vlserve up --rebuild-ledger`"):
            opener(ledger_file.parent)
    assert sorted(ledger_file.parent.iterdir()) == before


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_ledger_is_said_in_one_line(
    ledger_file: Path, damage: Callable[[Path], None]
) -> None:
    damage(ledger_file)
    with pytest.raises(LedgerDamaged, match=r"is damaged .*`vlserve up --rebuild-ledger`") as error:
        Ledger(ledger_file.parent)
    assert "\n" not in str(error.value)


def test_a_store_without_archives_gets_a_ledger(tmp_path: Path) -> None:
    refuse_lost_ledger(tmp_path)
    Ledger(tmp_path).close()
    (tmp_path / "notes" / "1").mkdir(parents=True)
    (tmp_path / "notes" / "1" / "other.mar").touch()
    Ledger(tmp_path).close()


@pytest.mark.parametrize("lose", [*LOST, *DAMAGED])
def test_it_is_rebuilt_from_archives_and_last_routes(
    ledger_file: Path,
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
    lose: Callable[[Path], None],
) -> None:
    routing = gateway.routing
    lose(ledger_file)
    lines = list(rebuild_ledger(settings))
    assert "tagger: versions 1, 2, all traffic to 1, as before" in lines
    assert any(
        "other: version 1, without traffic: `vlserve release other" in line for line in lines
    )
    engine.restart_bare("engine-0")
    second = assemble(settings, engine, gateway)
    try:
        states = {each.key: each.state for each in second.ledger.versions()}
        assert states == {
            ("tagger", 1): State.STABLE,
            ("tagger", 2): State.READY,
            ("other", 1): State.RETIRED,
        }
        second.start()
        wait_for(lambda: set(engine.held["engine-0"]) == {("tagger", 1), ("tagger", 2)})
        wait_for(lambda: gateway.route().weights == {1: 100})
        wait_for(lambda: not gateway.routing.instances[0].lacks)
        assert [each.versions for each in gateway.routing.models] == [
            each.versions for each in routing.models
        ]
        assert kinds(second)[:3] == ["rebuilt", "rebuilt", "released"]
        assert second.service.release("tagger", 2).previous == 1
        assert second.service.release("other", 1).version == 1
    finally:
        second.stop()


def test_what_no_instance_held_is_on_the_engine_of_the_stack(
    ledger_file: Path, settings: Settings
) -> None:
    DAMAGED[0](ledger_file)
    on_triton = settings.model_copy(update={"engine": EngineSettings(kind="triton")})
    list(rebuild_ledger(on_triton))
    with Ledger(ledger_file.parent) as ledger:
        engines = {each.key: each.engine for each in ledger.versions()}
    assert set(engines.values()) == {"triton"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold within 30 s"
        time.sleep(0.01)


def test_it_is_rebuilt_in_containers_too(
    ledger_file: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(containers, "load_settings", lambda: settings)
    assert containers.main(["rebuild"]) == 1
    assert "nothing to rebuild" in capsys.readouterr().err
    remove(ledger_file)
    assert containers.main(["rebuild"]) == 0
    assert "tagger: versions 1, 2, all traffic to 1" in capsys.readouterr().out
    refuse_lost_ledger(ledger_file.parent)


def test_what_was_there_is_moved_aside(ledger_file: Path, settings: Settings) -> None:
    no_ledger(ledger_file)
    content = ledger_file.read_bytes()
    (line,) = [line for line in rebuild_ledger(settings) if "is kept as" in line]
    assert (ledger_file.parent / line.rpartition(" ")[2]).read_bytes() == content


def test_an_archive_that_is_damaged_is_left_out(ledger_file: Path, settings: Settings) -> None:
    archive = ledger_file.parent / "tagger" / "2" / "tagger-2.mar"
    archive.write_bytes(archive.read_bytes()[:-100])
    stray = ledger_file.parent / "wrong" / "1" / "wrong-1.mar"
    stray.parent.mkdir(parents=True)
    shutil.copy(ledger_file.parent / "tagger" / "1" / "tagger-1.mar", stray)
    remove(ledger_file)
    lines = list(rebuild_ledger(settings))
    assert any(f"left out: {archive}" in line for line in lines)
    assert any(f"left out: {stray} is tagger 1 by its manifest" in line for line in lines)
    with Ledger(settings.model_store) as ledger:
        assert [each.key for each in ledger.versions("tagger")] == [("tagger", 1)]


def test_a_rollout_that_was_under_way_is_over(
    ledger_file: Path, settings: Settings, pack: Archive
) -> None:
    keep_routes(settings, Routing([ModelRoute("tagger", weights={2: 25, 1: 75}, versions=(1, 2))]))
    remove(ledger_file)
    lines = list(rebuild_ledger(settings))
    assert (
        "tagger: versions 1, 2, all traffic to 1: the rollout that was under way is over" in lines
    )
    with Ledger(settings.model_store) as ledger:
        assert ledger.model("tagger").weights == {1: 100}
        (event,) = [each for each in ledger.events("tagger") if each.kind == "released"]
        assert event.detail["rebuilt_from"] == {"2": 25, "1": 75}


def test_without_routes_nothing_has_traffic(ledger_file: Path, settings: Settings) -> None:
    routes_file(settings).unlink()
    remove(ledger_file)
    assert all("without traffic" in line for line in rebuild_ledger(settings))


def test_a_whole_ledger_is_not_rebuilt(ledger_file: Path, settings: Settings) -> None:
    content = ledger_file.read_bytes()
    with pytest.raises(ControlError, match="nothing to rebuild"):
        list(rebuild_ledger(settings))
    assert ledger_file.read_bytes() == content


def test_nobody_rebuilds_what_a_control_service_has_open(
    tagger: Control, settings: Settings
) -> None:
    """Nor are its files moved away under it."""
    (settings.model_store / LEDGER).write_bytes(b"damaged")
    refuse_lost_ledger(settings.model_store)
    files = sorted(settings.model_store.glob(f"{LEDGER}*"))
    with pytest.raises(ControlError, match=r"a control service has the ledger .* `vlserve down`"):
        list(rebuild_ledger(settings))
    assert sorted(settings.model_store.glob(f"{LEDGER}*")) == files


def test_last_routes_are_read_back(settings: Settings) -> None:
    keep_routes(
        settings,
        Routing(
            [
                ModelRoute("a-1", weights={3: 5, 2: 95}, versions=(1, 2, 3)),
                ModelRoute("b", weights={}, versions=(1,)),
            ]
        ),
    )
    last = last_routes(settings)
    assert last == {
        "a-1": LastRoute(frozenset({1, 2, 3}), {3: 5, 2: 95}),
        "b": LastRoute(frozenset({1}), {}),
    }
    assert (last["a-1"].stable, last["b"].stable) == (2, None)
    routes_file(settings).write_text(json.dumps({"resources": []}), encoding="utf-8")
    assert last_routes(settings) == {}


def damage_now(control: Control) -> None:
    """Damage the ledger under a control service, and let it read the file again."""
    database = control.ledger.database
    while database._idle:
        database._idle.pop().close()
    no_ledger(control.ledger.store / LEDGER)


def test_what_serves_goes_on_and_can_go_back_though_the_ledger_is_damaged(
    tagger: Control, gateway: FakeGateway, engine: FakeEngine
) -> None:
    start(tagger)
    tagger.reconciler.tick()
    tagger.rollout_loop.tick()
    damage_now(tagger)
    tagger.reconciler.tick()
    assert gateway.route().weights == {2: 20, 1: 80}
    health = tagger.service.health()
    assert "is damaged" in health.status
    assert tagger.service.model("tagger").weights == {2: 20, 1: 80}
    rollout = tagger.service.rollouts.abort("tagger")
    assert rollout.status is RolloutStatus.ABORTED
    assert "is damaged" in rollout.unrecorded
    assert gateway.route().weights == {1: 100}
    tagger.reconciler.tick()
    with pytest.raises(LedgerDamaged):  # the loop logs it once
        tagger.rollout_loop.tick()
    assert gateway.route().weights == {1: 100}
    assert look(tagger).status is RolloutStatus.ABORTED


@pytest.mark.parametrize("size", [0, 1.0], ids=["cut", "overwritten in its place"])
def test_damage_that_its_readers_do_not_meet_is_found(
    tagger: Control, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    """They have the pages in memory, and the newest changes in another file."""
    ledger = tagger.ledger.store / LEDGER
    tagger.ledger.database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    before = ledger.stat().st_size
    assert tagger.service.health().status == "ok"
    tagger.service.release("tagger", 2)
    with ledger.open("r+b") as file:
        file.truncate(int(size * before))
        file.write(b"\xa5" * 9000)
    monkeypatch.setattr("vlserve.control.store.database._LOOK_EVERY_S", 0.0)
    tagger.reconciler.tick()
    assert "is damaged" in tagger.service.health().status
    with pytest.raises(LedgerDamaged):
        tagger.service.release("tagger", 1)
    assert gateway.route().weights == {2: 100}
    rollback = tagger.service.rollback("tagger")
    assert (rollback.version, "is damaged" in rollback.unrecorded) == (1, True)
    assert gateway.route().weights == {1: 100}


def test_a_row_that_cannot_be_read_is_damage(tagger: Control, settings: Settings) -> None:
    tagger.ledger.database.execute("UPDATE models SET weights = '[1, 2'")
    tagger.stop()
    with Ledger(settings.model_store) as ledger, pytest.raises(LedgerDamaged, match="of tagger"):
        ledger.models()


def test_health_tells_of_a_row_that_cannot_be_read(tagger: Control, gateway: FakeGateway) -> None:
    tagger.reconciler.tick()
    tagger.ledger.database.execute("UPDATE models SET weights = '[1, 2'")
    tagger.reconciler.tick()
    assert "what it says of tagger cannot be read" in tagger.service.health().status
    assert gateway.route().weights == {1: 100}


def test_a_deleted_ledger_is_told_and_written_anew_by_down(
    tagger: Control, settings: Settings
) -> None:
    remove(settings.model_store / LEDGER)
    tagger.service.release("tagger", 2)
    status = tagger.service.health().status
    assert "was deleted while the control service had it open" in status
    assert "`vlserve down` writes it anew" in status
    history = kinds(tagger)
    tagger.stop()
    with Ledger(settings.model_store) as ledger:
        assert ledger.model("tagger").stack == (1, 2)
        assert [event.kind for event in ledger.events("tagger")] == history


def test_another_file_in_its_place_is_told_and_left(tagger: Control, settings: Settings) -> None:
    ledger = settings.model_store / LEDGER
    ledger.unlink()
    with closing(sqlite3.connect(ledger)) as other:
        other.execute("CREATE TABLE something (x)")
        other.commit()
    assert "another file was put in the place of the ledger" in tagger.service.health().status
    content = ledger.read_bytes()
    tagger.stop()
    assert ledger.read_bytes() == content
