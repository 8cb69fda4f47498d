"""Registration over an engine and a gateway in memory: what is promised, what goes wrong."""

import zipfile
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
    ArchiveError,
    EngineUnavailable,
    LoadFailed,
    NotReady,
    VersionConflict,
)
from vlserve.exporter.pack import draft_of, pack_archive
from vlserve.runtime.archive import verify_archive

Archive = Callable[..., Path]
Register = Callable[..., Registration]


def test_register_loads_probes_and_opens_the_path_without_traffic(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    registration = register(1)
    assert (registration.version, registration.state, registration.already_registered) == (
        1,
        State.READY,
        False,
    )
    assert control.ledger.version("tagger", 1).archive.is_file()
    assert list(engine.held["engine-0"]) == [("tagger", 1)]
    assert (gateway.route().versions, gateway.route().weights) == ((1,), {})
    assert kinds(control) == ["registered", "loading", "loaded"]
    assert list(control.service.incoming.iterdir()) == []


def test_the_same_bytes_again_are_a_no_op_that_says_so(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    register(1)
    history = kinds(control)
    registration = register(1)
    assert (registration.already_registered, registration.state) == (True, State.READY)
    assert engine.loads == [("tagger", 1)]
    assert kinds(control) == history


def test_other_bytes_under_a_used_number_are_refused(control: Control, register: Register) -> None:
    register(1)
    before = control.ledger.version("tagger", 1)
    with pytest.raises(VersionConflict, match=r"tagger 1 is registered from other bytes"):
        register(1, shift=1)
    assert control.ledger.version("tagger", 1) == before


def test_a_retired_number_stays_taken(control: Control, register: Register) -> None:
    register(1)
    control.service.unload("tagger", 1)
    assert register(1).state is State.RETIRED
    with pytest.raises(VersionConflict):
        register(1, shift=1)


def test_a_load_that_fails_leaves_a_reason_and_nothing_in_the_engine(
    control: Control, engine: FakeEngine, gateway: FakeGateway, register: Register
) -> None:
    engine.fail_to_load[("tagger", 1)] = "RuntimeError: no such graph"
    with pytest.raises(LoadFailed, match="no such graph"):
        register(1)
    record = control.ledger.version("tagger", 1)
    assert (record.state, record.reason) == (State.FAILED, "RuntimeError: no such graph")
    assert engine.held == {"engine-0": {}}
    assert gateway.routing.models == ()
    assert kinds(control)[-1] == "failed"


def test_wrong_answers_to_probes_fail_it_and_take_it_out_again(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    engine.answer_wrong.add(("tagger", 1))
    with pytest.raises(LoadFailed, match=r"does not answer as it did.*probe 1 on engine-0: tags"):
        register(1)
    assert state(control, 1) is State.FAILED
    assert engine.held == {"engine-0": {}}


def test_a_failed_version_is_tried_again_from_the_same_bytes(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    engine.fail_to_load[("tagger", 1)] = "out of memory"
    with pytest.raises(LoadFailed):
        register(1)
    engine.fail_to_load.clear()
    assert register(1).already_registered is False
    assert state(control, 1) is State.READY


def test_a_failed_number_may_be_used_for_other_bytes(
    control: Control, engine: FakeEngine, register: Register, pack: Archive
) -> None:
    engine.fail_to_load[("tagger", 1)] = "no such graph"
    with pytest.raises(LoadFailed):
        register(1)
    engine.fail_to_load.clear()
    assert register(1, shift=1).state is State.READY
    record = control.ledger.version("tagger", 1)
    assert record.archive.read_bytes() == pack("tagger", 1, 1).read_bytes()


def test_a_broken_archive_leaves_no_trace(control: Control, pack: Archive) -> None:
    file = control.service.incoming / "broken.mar"
    file.write_bytes(pack().read_bytes()[:-100])
    with pytest.raises(ArchiveError):
        control.service.register(file)
    assert control.ledger.models() == []


def test_a_file_name_that_contradicts_the_manifest_is_refused(
    control: Control, register: Register
) -> None:
    with pytest.raises(ArchiveError, match=r"other-1.mar is tagger 1 by its manifest"):
        register(1, name="other-1.mar")
    assert control.ledger.models() == []
    assert register(1, name="tagger-1.mar").state is State.READY
    assert register(2, name="upload.bin").state is State.READY


def test_what_is_refused_is_an_event_of_the_model_that_its_file_names(
    control: Control, register: Register
) -> None:
    register(1)
    for name, why in (
        ("tagger-1.mar", "tagger 1 is registered from other bytes"),
        ("tagger-2.mar", "tagger-2.mar is tagger 1 by its manifest"),
    ):
        with pytest.raises((ArchiveError, VersionConflict), match=why):
            register(1, shift=1, name=name)
        event = control.ledger.events("tagger")[-1]
        assert (event.kind, event.version, event.detail["archive"]) == ("refused", None, name)
        assert why in event.detail["reason"]
    with pytest.raises(ArchiveError):
        register(1, name="other-1.mar")
    assert kinds(control)[3:] == ["refused", "refused"]


def test_an_archive_without_probes_is_refused(
    control: Control, pack: Archive, tmp_path: Path
) -> None:
    draft = draft_of(verify_archive(pack())) | {"probes": []}
    with zipfile.ZipFile(pack()) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if "/" in name}
    bare = pack_archive(tmp_path, draft, members)
    file = bare.rename(control.service.incoming / "bare.mar")
    with pytest.raises(ArchiveError, match="holds no probes"):
        control.service.register(file)


def test_two_registers_of_the_same_archive_load_it_once(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    with ThreadPoolExecutor(4) as pool:
        registrations = [call.result() for call in [pool.submit(register, 1) for _ in range(4)]]
    assert sorted(each.already_registered for each in registrations) == [False, True, True, True]
    assert engine.loads == [("tagger", 1)]


def test_two_archives_that_race_for_one_number_do_not_mix(
    control: Control, register: Register, pack: Archive
) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(register, 1, shift=shift) for shift in (0, 1)]
        errors = [call.exception() for call in calls]
    winner = errors.index(None)
    assert isinstance(errors[1 - winner], VersionConflict)
    archive = control.ledger.version("tagger", 1).archive
    assert archive.read_bytes() == pack("tagger", 1, winner).read_bytes()


def test_an_engine_that_is_down_at_register_gets_the_version_later(
    control: Control, engine: FakeEngine, register: Register
) -> None:
    engine.down.add("engine-0")
    with pytest.raises(EngineUnavailable):
        register(1)
    engine.down.clear()
    assert register(1).state is State.READY


def test_a_cleanup_that_fails_hides_no_reason(
    control: Control, engine: FakeEngine, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unload(model: str, version: int) -> None:
        if engine.loads:
            raise NotReady("the engine did not let go")

    monkeypatch.setattr(engine, "unload", unload)
    engine.fail_to_load[("tagger", 1)] = "no such graph"
    with pytest.raises(LoadFailed, match="no such graph"):
        register(1)
    assert state(control, 1) is State.FAILED
