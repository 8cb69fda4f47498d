"""`vlserve init` and what `vlserve up` does with its copies after an upgrade."""

from pathlib import Path

import pytest

from vlserve.errors import SettingsError
from vlserve.project import MARKER, packaged_dir
from vlserve.project_copies import packaged_files, read_marker, renew_copies, write_copies

TAG, ROLLOUT, START = "handlers/tag.py", "serving_config/rollout.yaml", "serving_config/start.sh"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that brings three files."""
    folder = tmp_path / "packaged"
    for name in (TAG, ROLLOUT, START):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of 1\n", encoding="utf-8")
    (folder / START).chmod(0o755)
    return folder


@pytest.fixture
def project(tmp_path: Path, package: Path) -> Path:
    write_copies(tmp_path / "project", "1", package)
    return tmp_path / "project"


def upgrade(package: Path, *names: str) -> None:
    for name in names:
        (package / name).write_text(f"{name} of 2\n", encoding="utf-8")


def test_init_copies_every_packaged_file_and_notes_the_version(tmp_path: Path) -> None:
    result = write_copies(tmp_path / "new" / "project", "1.2.3")
    assert result.written == tuple(packaged_files(packaged_dir()))
    assert result.kept == ()
    for name in result.written:
        copy = result.folder / name
        assert copy.read_bytes() == (packaged_dir() / name).read_bytes()
        assert copy.stat().st_mode == (packaged_dir() / name).stat().st_mode
    marker = read_marker(result.folder)
    assert marker is not None
    assert marker.vlserve == "1.2.3"
    assert set(marker.files) == set(result.written)


def test_init_overwrites_nothing(tmp_path: Path, package: Path) -> None:
    (tmp_path / "handlers").mkdir()
    (tmp_path / TAG).write_text("mine", encoding="utf-8")
    result = write_copies(tmp_path, "1", package)
    assert result.kept == (TAG,)
    assert result.written == (ROLLOUT, START)
    assert (tmp_path / TAG).read_text(encoding="utf-8") == "mine"


def test_init_refuses_a_checkout() -> None:
    with pytest.raises(SettingsError, match="is a checkout"):
        write_copies(packaged_dir(), "1")
    assert not (packaged_dir() / MARKER).exists()


def test_a_copy_that_nobody_edited_is_replaced_once(project: Path, package: Path) -> None:
    upgrade(package, TAG, START)
    result = renew_copies(project, "2", package)
    assert result.replaced == (TAG, START)
    assert not result.edited
    assert (project / TAG).read_text(encoding="utf-8") == f"{TAG} of 2\n"
    assert (project / START).stat().st_mode & 0o777 == 0o755
    marker = read_marker(project)
    assert marker is not None
    assert marker.vlserve == "2"
    before = (project / MARKER).stat().st_mtime_ns
    assert renew_copies(project, "2", package).replaced == ()
    assert (project / MARKER).stat().st_mtime_ns == before


def test_an_edited_copy_stays_and_is_named_until_init_notes_it(
    project: Path, package: Path
) -> None:
    (project / ROLLOUT).write_text("mine", encoding="utf-8")
    assert renew_copies(project, "1", package).edited == ()  # its packaged file is the same
    upgrade(package, ROLLOUT)
    for _ in range(2):
        assert renew_copies(project, "2", package).edited == (ROLLOUT,)
    write_copies(project, "2", package)
    assert renew_copies(project, "2", package).edited == ()
    assert (project / ROLLOUT).read_text(encoding="utf-8") == "mine"
    upgrade(package, TAG)
    (package / ROLLOUT).write_text("of 3", encoding="utf-8")
    assert renew_copies(project, "3", package).edited == (ROLLOUT,)


def test_a_copy_that_was_brought_up_by_hand_is_not_named(project: Path, package: Path) -> None:
    upgrade(package, TAG)
    (project / TAG).write_text((package / TAG).read_text(encoding="utf-8"), encoding="utf-8")
    result = renew_copies(project, "2", package)
    assert (result.replaced, result.edited) == ((), ())


def test_init_after_an_upgrade_leaves_old_copies_to_up(project: Path, package: Path) -> None:
    upgrade(package, TAG)
    write_copies(project, "2", package)
    assert renew_copies(project, "2", package).replaced == (TAG,)


def test_a_deleted_copy_stays_deleted_and_a_new_file_is_not_copied(
    project: Path, package: Path
) -> None:
    (project / TAG).unlink()
    upgrade(package, TAG)
    (package / "handlers" / "new.py").write_text("new", encoding="utf-8")
    renew_copies(project, "2", package)
    assert not (project / TAG).exists()
    assert not (project / "handlers" / "new.py").exists()


def test_the_copy_of_a_file_that_is_gone_goes_unless_it_was_edited(
    project: Path, package: Path
) -> None:
    for name in (TAG, ROLLOUT):
        (package / name).unlink()
    (project / ROLLOUT).write_text("mine", encoding="utf-8")
    result = renew_copies(project, "2", package)
    assert (result.removed, result.edited) == ((TAG,), (ROLLOUT,))
    assert not (project / TAG).exists()
    assert (project / ROLLOUT).read_text(encoding="utf-8") == "mine"


def test_a_folder_without_a_marker_is_left_alone(tmp_path: Path, package: Path) -> None:
    (tmp_path / "handlers").mkdir()
    (tmp_path / TAG).write_text(f"{TAG} of 0\n", encoding="utf-8")
    assert renew_copies(tmp_path, "1", package).replaced == ()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "handlers", package]


@pytest.mark.parametrize("text", ["{", '{"schema_version": 2, "vlserve": "9", "files": {}}'])
def test_a_marker_that_cannot_be_read_is_named(project: Path, package: Path, text: str) -> None:
    (project / MARKER).write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=MARKER):
        renew_copies(project, "1", package)
