"""`delete`: the archive goes, the number stays taken, and nothing that serves is touched."""

import shutil
from pathlib import Path

import pytest

from support.control_api_server import RunningControl
from support.running_stack import wait_until
from vlserve.control.domain import State
from vlserve.errors import (
    LoadFailed,
    NothingToRollBackTo,
    NotReady,
    NotUnloaded,
    VersionConflict,
    VersionNotFound,
)
from vlserve.exporter.echo import pack_echo


def kept(control: RunningControl, version: int) -> Path:
    return control.settings.model_store / "tagger" / str(version) / f"tagger-{version}.mar"


@pytest.fixture
def three_versions(control_api: RunningControl, archives: list[Path]) -> RunningControl:
    """Versions 1, 2 and 3 were released one after the other; 3 is stable."""
    for version, archive in enumerate(archives, 1):
        control_api.client.register(archive)
        control_api.client.release("tagger", version)
    return control_api


def test_a_retired_version_goes_and_rollback_passes_it_over(three_versions: RunningControl) -> None:
    client = three_versions.client
    client.unload("tagger", 2)
    size = kept(three_versions, 2).stat().st_size
    deletion = client.delete("tagger", 2)
    assert (deletion.state, deletion.freed_bytes, deletion.rollback_to) == (State.DELETED, size, 1)
    assert not kept(three_versions, 2).parent.exists()
    assert kept(three_versions, 1).exists()
    model = client.model("tagger")
    assert (model.stable, model.earlier) == (3, (1,))
    assert [each.state for each in model.versions] == [State.READY, State.DELETED, State.STABLE]
    assert client.history("tagger")[-1].kind == "deleted"
    assert client.rollback("tagger").version == 1
    with pytest.raises(NothingToRollBackTo):
        client.rollback("tagger", 2)


def test_deleted_twice_is_deleted_once(three_versions: RunningControl) -> None:
    three_versions.client.unload("tagger", 1)
    assert three_versions.client.delete("tagger", 1).freed_bytes
    assert three_versions.client.delete("tagger", 1).freed_bytes == 0
    kinds = [event.kind for event in three_versions.client.history("tagger")]
    assert kinds.count("deleted") == 1


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_loaded_stays(three_versions: RunningControl, version: int) -> None:
    state = {2: "ready", 3: "stable"}[version]
    with pytest.raises(NotUnloaded, match=rf"tagger {version} is {state}.*vlserve unload"):
        three_versions.client.delete("tagger", version)
    assert kept(three_versions, version).exists()


def test_what_is_not_there_is_named(three_versions: RunningControl) -> None:
    with pytest.raises(VersionNotFound, match="tagger has no version 9"):
        three_versions.client.delete("tagger", 9)


def test_the_number_stays_taken(three_versions: RunningControl, tmp_path: Path) -> None:
    three_versions.client.unload("tagger", 1)
    three_versions.client.delete("tagger", 1)
    with pytest.raises(VersionConflict):
        three_versions.client.register(pack_echo(tmp_path, "tagger", 1, answer_shift=1))
    with pytest.raises(NotReady, match=r"tagger 1 is deleted.*vlserve register"):
        three_versions.client.release("tagger", 1)


def test_the_same_archive_comes_back(three_versions: RunningControl, archives: list[Path]) -> None:
    three_versions.client.unload("tagger", 1)
    three_versions.client.delete("tagger", 1)
    registration = three_versions.client.register(archives[0])
    assert (registration.state, registration.already_registered) == (State.READY, False)
    assert kept(three_versions, 1).exists()
    assert three_versions.client.rollback("tagger", 1).version == 1


def test_a_failed_version_goes_too(
    control_api: RunningControl, archives: list[Path], tmp_path: Path
) -> None:
    """Its number would be free for other bytes as long as it is failed; deleted, it is taken."""
    control_api.engine.fail_to_load[("tagger", 1)] = "no such graph"
    with pytest.raises(LoadFailed, match=r"no such graph"):
        control_api.client.register(archives[0])
    assert control_api.client.delete("tagger", 1).state is State.DELETED
    control_api.engine.fail_to_load.clear()
    with pytest.raises(VersionConflict):
        control_api.client.register(pack_echo(tmp_path, "tagger", 1, answer_shift=1))


def test_an_archive_that_was_lost_before_is_no_obstacle(three_versions: RunningControl) -> None:
    three_versions.client.unload("tagger", 1)
    shutil.rmtree(kept(three_versions, 1).parent)
    deletion = three_versions.client.delete("tagger", 1)
    assert (deletion.state, deletion.freed_bytes) == (State.DELETED, 0)


def test_the_engine_is_not_given_a_deleted_version_again(three_versions: RunningControl) -> None:
    three_versions.client.unload("tagger", 1)
    three_versions.client.delete("tagger", 1)
    wait_until(lambda: not three_versions.client.health().restoring, timeout_s=30)
    assert three_versions.client.health().status == "ok"
