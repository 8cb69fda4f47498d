"""The way back works though the ledger, or the disks, take no change."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
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
from support.small_disk import fill, small_disk
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import RolloutStatus, State
from vlserve.control.store.database import LEDGER
from vlserve.control.store.ledger import Ledger
from vlserve.errors import (
    GatewayUnwritable,
    LedgerFull,
    LedgerUnwritable,
    NoRelease,
    NothingToRollBackTo,
    NotReady,
    StoreUnwritable,
)
from vlserve.settings import Settings

Archive = Callable[..., Path]
Trouble = Callable[[Control], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def locks_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlserve.control.store.database.LOCK_TIMEOUT_S", 0.05)


@pytest.fixture
def disk(settings: Settings) -> Iterator[Path]:
    """The model store on a disk of its own."""
    with small_disk(settings.model_store) as folder:
        yield folder


@pytest.fixture
def on_disk(disk: Path, tagger: Control) -> Control:
    """tagger 1 stable, tagger 2 ready, on that disk, with the reserve set aside."""
    assert (disk / f"{LEDGER}.reserve").exists()
    return tagger


@contextmanager
def locked(control: Control) -> Iterator[None]:
    with closing(sqlite3.connect(control.ledger.store / LEDGER, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def read_only(control: Control) -> Iterator[None]:
    database = control.ledger.database
    database.execute("PRAGMA query_only = ON")
    yield
    database.query("PRAGMA query_only = OFF")


@contextmanager
def no_page_left(control: Control) -> Iterator[None]:
    database = control.ledger.database
    pages = database.query("PRAGMA page_count")[0][0]
    with database.transaction():  # the free pages of the file
        database.execute("CREATE TABLE filling (bytes BLOB)")
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerFull):
        while True:
            database.execute("INSERT INTO filling VALUES (zeroblob(500))")
    yield
    database.query("PRAGMA max_page_count = 1000000")


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "locked": (locked, "another process holds it locked"),
    "read-only": (read_only, "it is read-only"),
    "full": (no_page_left, "its disk is full"),
}


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> tuple[Trouble, str]:
    result: tuple[Trouble, str] = request.param
    return result


def ledger_says(control: Control) -> tuple[str, str | None]:
    """Return the weights of tagger and how its last rollout ended."""
    with closing(sqlite3.connect(control.ledger.store / LEDGER)) as raw:
        ((weights,),) = raw.execute("SELECT weights FROM models")
        rollouts = raw.execute("SELECT status FROM gray_releases ORDER BY id DESC").fetchall()
    return weights, rollouts[0][0] if rollouts else None


def test_abort_uses_the_space_that_is_set_aside(
    on_disk: Control, disk: Path, gateway: FakeGateway
) -> None:
    start(on_disk)
    fill(disk)
    aborted = on_disk.service.rollouts.abort("tagger")
    assert (aborted.status, aborted.unrecorded) == (RolloutStatus.ABORTED, "")
    assert gateway.route().weights == {1: 100}
    assert ledger_says(on_disk) == ('{"1": 100}', "aborted")
    assert not (disk / f"{LEDGER}.reserve").exists()


def test_rollback_uses_the_space_that_is_set_aside(
    on_disk: Control, disk: Path, gateway: FakeGateway
) -> None:
    on_disk.service.release("tagger", 2)
    fill(disk)
    done = on_disk.service.rollback("tagger")
    assert (done.version, done.previous, done.unrecorded) == (1, 2, "")
    assert gateway.route().weights == {1: 100}
    assert on_disk.ledger.model("tagger").stack == (1,)


def test_the_judge_takes_a_bad_version_back_on_a_full_disk(
    on_disk: Control, disk: Path, gateway: FakeGateway, requests: Requests
) -> None:
    start(on_disk)
    fill(disk)
    ended = drive(on_disk, requests, {2: Behaviour(fail_rate=0.3)})
    assert ended.status is RolloutStatus.ROLLED_BACK
    assert gateway.route().weights == {1: 100}
    assert ledger_says(on_disk) == ('{"1": 100}', "rolled_back")


def test_what_is_set_aside_is_missed_though_the_disk_has_room(on_disk: Control, disk: Path) -> None:
    """It was used: what it freed is more than counts as full on so small a disk."""
    (disk / f"{LEDGER}.reserve").unlink()
    (trouble,) = on_disk.service.health().troubles
    assert trouble.check == "disk"
    assert "are not set aside for a rollback" in trouble.message


def test_nothing_goes_forward_on_a_full_disk_and_the_space_stays(
    on_disk: Control, disk: Path, gateway: FakeGateway, requests: Requests
) -> None:
    start(on_disk)
    fill(disk)
    still = drive(on_disk, requests)
    assert (still.status, still.weight) == (RolloutStatus.RUNNING, 20)
    with pytest.raises(LedgerFull, match=r"its disk is full.*`vlserve rollback`"):
        on_disk.service.rollouts.promote("tagger")
    assert gateway.route().weights == {2: 20, 1: 80}
    assert (disk / f"{LEDGER}.reserve").exists()


def test_health_says_so_until_there_is_room(on_disk: Control, disk: Path) -> None:
    filling = fill(disk)
    with pytest.raises(LedgerFull):
        on_disk.service.release("tagger", 2)
    checks = {each.check: each.message for each in on_disk.service.health().troubles}
    assert f"the disk of model_store ({disk})" in checks["disk"]
    assert "its disk is full" in checks["ledger"]
    filling.unlink()
    assert on_disk.service.health().status == "ok"


def test_the_space_is_set_aside_again(on_disk: Control, disk: Path) -> None:
    start(on_disk)
    filling = fill(disk)
    on_disk.service.rollouts.abort("tagger")
    on_disk.reconciler.tick()
    assert not (disk / f"{LEDGER}.reserve").exists()
    assert "2 MiB in " in on_disk.service.health().status
    filling.unlink()
    on_disk.reconciler.tick()
    assert (disk / f"{LEDGER}.reserve").exists()
    assert on_disk.service.health().status == "ok"


def test_abort_changes_the_gateway_first_where_the_ledger_takes_no_change(
    tagger: Control, gateway: FakeGateway, requests: Requests, trouble: tuple[Trouble, str]
) -> None:
    start(tagger)
    make, why = trouble
    with make(tagger):
        aborted = tagger.service.rollouts.abort("tagger")
        assert (aborted.status, aborted.weight) == (RolloutStatus.ABORTED, 0)
        assert why in aborted.unrecorded
        assert gateway.route().weights == {1: 100}
        assert gateway.route().step == ""
        assert ledger_says(tagger) == ('{"2": 20, "1": 80}', "running")
        assert look(tagger).status is RolloutStatus.ABORTED
        assert tagger.service.model("tagger").weights == {1: 100}
        said = [each.message for each in tagger.service.health().troubles]
        assert [each for each in said if "the ledger does not know it yet" in each]
        assert [each for each in said if why in each]
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
        done = tagger.service.rollback("tagger")
        assert (done.version, done.previous) == (1, 2)
        assert why in done.unrecorded
        assert gateway.route().weights == {1: 100}
        shown = tagger.service.model("tagger")
        assert (shown.stable, shown.weights) == (1, {1: 100})
    tagger.reconciler.tick()
    assert tagger.ledger.model("tagger").stack == (1,)
    assert kinds(tagger)[-2:] == ["rolled_back", "recorded_late"]
    assert tagger.service.health().status == "ok"


def test_back_twice_while_the_ledger_takes_no_change(
    tagger: Control, packed: Archive, gateway: FakeGateway
) -> None:
    """The second way back does not make the ledger miss the first."""
    tagger.service.release("tagger", 2)
    register(tagger, packed("tagger", 3))
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


def test_a_restart_does_not_forget_what_the_ledger_was_not_told(
    tagger: Control, settings: Settings, engine: FakeEngine, gateway: FakeGateway
) -> None:
    start(tagger)
    with locked(tagger):
        tagger.service.rollouts.abort("tagger")
    gateway.routing = type(gateway.routing)()
    tagger.ledger.close()
    again = assemble(settings, engine, gateway)
    try:
        with locked(again):
            again.reconciler.tick()
            assert gateway.route().weights == {1: 100}
            assert ledger_says(again) == ('{"2": 20, "1": 80}', "running")
        again.reconciler.tick()
        assert ledger_says(again) == ('{"1": 100}', "aborted")
    finally:
        again.stop()
    last = assemble(settings, engine, gateway)
    last.reconciler.tick()
    assert kinds(last).count("recorded_late") == 1
    last.stop()


def test_a_restart_on_a_full_disk_works(
    on_disk: Control,
    disk: Path,
    settings: Settings,
    engine: FakeEngine,
    gateway: FakeGateway,
) -> None:
    start(on_disk)
    on_disk.ledger.close()
    fill(disk)
    again = assemble(settings, engine, gateway)
    try:
        again.reconciler.tick()
        again.service.rollouts.abort("tagger")
        assert gateway.route().weights == {1: 100}
    finally:
        again.stop()


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


@pytest.mark.parametrize("ledger_too", [False, True], ids=["room", "room and ledger"])
def test_the_gateways_files_get_the_space_that_is_set_aside(
    tagger: Control,
    gateway: FakeGateway,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    ledger_too: bool,
) -> None:
    """The fake has no files: it takes the routing once the space is free. The ledger may be locked
    as well."""
    reserve = settings.state_dir / "gateway" / "reserve"
    reserve.parent.mkdir(parents=True, exist_ok=True)
    start(tagger)
    tagger.reconciler.tick()
    assert reserve.exists()
    apply = gateway.apply

    def apply_where_there_is_room(routing: object) -> None:
        if reserve.exists():
            raise GatewayUnwritable("no space left on device")
        apply(routing)  # type: ignore[arg-type]

    monkeypatch.setattr(gateway, "apply", apply_where_there_is_room)
    with pytest.raises(GatewayUnwritable):
        tagger.service.rollouts.promote("tagger")
    with locked(tagger) if ledger_too else nullcontext():
        assert bool(tagger.service.rollouts.abort("tagger").unrecorded) is ledger_too
    assert gateway.route().weights == {1: 100}


def test_a_reserve_that_cannot_be_freed_does_not_hinder_the_way_back(
    on_disk: Control, disk: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the gateway's own, where state_dir is read-only."""
    start(on_disk)
    fill(disk)

    def refuse() -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(on_disk.service._traffic._reserves[1], "give_up", refuse)
    assert on_disk.service.rollouts.abort("tagger").unrecorded == ""
    assert gateway.route().weights == {1: 100}


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
    tagger: Control, packed: Archive, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger.service.release("tagger", 2)
    register(tagger, packed("tagger", 3))
    lifecycle = tagger.service._lifecycle

    def move(_: object) -> None:
        monkeypatch.undo()
        tagger.service.release("tagger", 3)

    monkeypatch.setattr(lifecycle, "check_way_back", move)
    with pytest.raises(NotReady, match="traffic of tagger moved meanwhile"):
        tagger.service.rollback("tagger")
    assert gateway.route().weights == {3: 100}


def test_a_store_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "store", "1m,ro") as folder,
        pytest.raises(LedgerUnwritable, match=f"{folder}.*Read-only file system"),
    ):
        Ledger(folder)


def test_an_archive_that_does_not_fit_is_refused_before_it_is_written(
    on_disk: Control, disk: Path
) -> None:
    with (
        pytest.raises(StoreUnwritable, match=rf"{disk} cannot take the archive: No space left"),
        on_disk.service.room_for(64 * 1024 * 1024),
    ):
        raise AssertionError("it must not get this far")


def test_an_archive_that_the_disk_ends_is_refused_and_leaves_nothing(
    on_disk: Control, disk: Path
) -> None:
    with pytest.raises(StoreUnwritable), on_disk.service.room_for(0) as archive:
        fill(disk)
        archive.write_bytes(bytes(1000))
    assert not list(on_disk.service.incoming.iterdir())


def test_what_the_ledger_cannot_take_stays_in_no_store(tagger: Control, packed: Archive) -> None:
    with locked(tagger), pytest.raises(LedgerUnwritable):
        register(tagger, packed("tagger", 3))
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
