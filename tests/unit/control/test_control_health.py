"""What health says of disks: it names the disk and what to free."""

from pathlib import Path

from support.small_disk import fill, small_disk
from vlserve.control.assembly import Control
from vlserve.control.store.disk_space import disk_troubles
from vlserve.settings import Settings


def troubles(**folders: Path) -> list[str]:
    return [each.message for each in disk_troubles(folders, Path("/the/logs"))]


def test_a_full_disk_is_named_once_with_all_that_lies_on_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        logs = disk / "logs"
        logs.mkdir()
        assert troubles(model_store=disk, logs=logs) == []
        filler = fill(disk)
        (message,) = troubles(model_store=disk, logs=logs, state_dir=tmp_path)
        assert f"the disk of model_store ({disk}), logs ({logs}) has 0.0 MiB left" in message
        assert "`vlserve delete`" in message and "/the/logs" in message
        filler.unlink()
        assert troubles(model_store=disk, logs=logs) == []


def test_a_disk_without_inodes_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "32m,nr_inodes=8") as disk:
        for number in range(7):
            (disk / str(number)).touch()
        (message,) = troubles(model_store=disk)
        assert "has no inode left" in message


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    assert troubles(model_store=tmp_path / "gone") == [
        f"model_store ({tmp_path / 'gone'}) cannot be used: No such file or directory"
    ]


def test_health_is_not_ok_on_a_full_disk_and_says_which_check(
    control: Control, settings: Settings
) -> None:
    with small_disk(settings.state_dir / "logs") as logs:
        control.reconciler.tick()
        assert "disk" not in [each.check for each in control.service.health().troubles]
        fill(logs)
        status = control.service.health()
        (trouble,) = [each for each in status.troubles if each.check == "disk"]
        assert f"the disk of logs ({logs})" in trouble.message
        assert trouble.message in status.status
        assert not trouble.passing
