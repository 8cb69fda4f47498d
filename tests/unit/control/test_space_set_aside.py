"""Space that is set aside for the way back, and disks that take nothing more."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from support.ledger_troubles import ledger_says, locked
from support.rollout_traffic import (
    Behaviour,
    Requests,
    drive,
    start,
)
from support.small_disk import fill, small_disk
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import RolloutStatus
from vlserve.control.store.database import LEDGER
from vlserve.control.store.ledger import Ledger
from vlserve.errors import (
    GatewayUnwritable,
    LedgerFull,
    LedgerUnwritable,
    StoreUnwritable,
)
from vlserve.settings import Settings

pytestmark = pytest.mark.usefixtures("locks_end_soon")


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


def test_abort_uses_the_space_that_is_set_aside(
    on_disk: Control, disk: Path, gateway: FakeGateway
) -> None:
    start(on_disk)
    fill(disk)
    rollout = on_disk.service.rollouts.abort("tagger")
    assert (rollout.status, rollout.unrecorded) == (RolloutStatus.ABORTED, "")
    assert gateway.route().weights == {1: 100}
    assert ledger_says(on_disk) == ('{"1": 100}', "aborted")
    assert not (disk / f"{LEDGER}.reserve").exists()


def test_rollback_uses_the_space_that_is_set_aside(
    on_disk: Control, disk: Path, gateway: FakeGateway
) -> None:
    on_disk.service.release("tagger", 2)
    fill(disk)
    rollback = on_disk.service.rollback("tagger")
    assert (rollback.version, rollback.previous, rollback.unrecorded) == (1, 2, "")
    assert gateway.route().weights == {1: 100}
    assert on_disk.ledger.model("tagger").stack == (1,)


def test_the_judge_takes_a_bad_version_back_on_a_full_disk(
    on_disk: Control, disk: Path, gateway: FakeGateway, requests: Requests
) -> None:
    start(on_disk)
    fill(disk)
    view = drive(on_disk, requests, {2: Behaviour(fail_rate=0.3)})
    assert view.status is RolloutStatus.ROLLED_BACK
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
    view = drive(on_disk, requests)
    assert (view.status, view.weight) == (RolloutStatus.RUNNING, 20)
    with pytest.raises(LedgerFull, match=r"its disk is full.*`vlserve rollback`"):
        on_disk.service.rollouts.promote("tagger")
    assert gateway.route().weights == {2: 20, 1: 80}
    assert (disk / f"{LEDGER}.reserve").exists()


def test_health_says_so_until_there_is_room(on_disk: Control, disk: Path) -> None:
    filler = fill(disk)
    with pytest.raises(LedgerFull):
        on_disk.service.release("tagger", 2)
    checks = {each.check: each.message for each in on_disk.service.health().troubles}
    assert f"the disk of model_store ({disk})" in checks["disk"]
    assert "its disk is full" in checks["ledger"]
    filler.unlink()
    assert on_disk.service.health().status == "ok"


def test_the_space_is_set_aside_again(on_disk: Control, disk: Path) -> None:
    start(on_disk)
    filler = fill(disk)
    on_disk.service.rollouts.abort("tagger")
    on_disk.reconciler.tick()
    assert not (disk / f"{LEDGER}.reserve").exists()
    assert "2 MiB in " in on_disk.service.health().status
    filler.unlink()
    on_disk.reconciler.tick()
    assert (disk / f"{LEDGER}.reserve").exists()
    assert on_disk.service.health().status == "ok"


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
    second = assemble(settings, engine, gateway)
    try:
        second.reconciler.tick()
        second.service.rollouts.abort("tagger")
        assert gateway.route().weights == {1: 100}
    finally:
        second.stop()


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
