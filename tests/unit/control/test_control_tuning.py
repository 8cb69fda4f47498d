"""What was tuned follows its version: into the ledger, into every load, out in the status."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.control_fakes import FakeEngine, FakeGateway
from vlserve.control.assembly import Control, assemble
from vlserve.control.domain import State
from vlserve.control.engine import grpc_calls, torchserve_grpc
from vlserve.control.reconcile.reconciler import Restore
from vlserve.control.store.database import LEDGER
from vlserve.control.tuning import (
    Measured,
    Serving,
    Tuning,
    of_engine,
    read_tuning,
    tuned,
    tuning_file,
)
from vlserve.errors import TuningInvalid
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

Archive = Callable[..., Path]
SERVING = Serving(workers=1, threads=2, batch_size=4, max_batch_delay_ms=3)


def tuning_of(archive: Path, serving: Serving = SERVING) -> Tuning:
    return Tuning(
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        serving=serving,
        slo_p99_ms=100.0,
        measured=Measured(connections=4, rps=90.0, p50_ms=40.0, p99_ms=80.0),
        machine="2 cores",
        tuned_at="2026-01-31T09:30:00+00:00",
    )


@pytest.fixture
def archive(control: Control, pack: Archive) -> Path:
    copy = control.service.incoming / "upload.mar"
    copy.write_bytes(pack().read_bytes())
    return copy


def test_a_tuned_version_is_loaded_so_at_every_load(
    control: Control,
    engine: FakeEngine,
    gateway: FakeGateway,
    archive: Path,
    pack: Archive,
    settings: Settings,
) -> None:
    control.service.register(archive, tuning=tuning_of(pack()))
    assert engine.served.pop(("tagger", 1)) == SERVING
    assert control.service.model("tagger").versions[0].tuning == tuning_of(pack())
    assert control.ledger.events("tagger")[0].detail["tuned"] == "1 x 2, batch 4, 3 ms"

    control.service.unload("tagger", 1)
    control.service._lifecycle.make_ready(control.ledger.version("tagger", 1))
    assert engine.served.pop(("tagger", 1)) == SERVING

    engine.restart_bare("engine-0")
    control.stop()
    second = assemble(settings, engine, gateway)
    (action,) = [action for action in second.reconciler.tick() if isinstance(action, Restore)]
    second.stop()  # after what the tick started
    assert action.record.tuning == tuning_of(pack())
    assert engine.served == {("tagger", 1): SERVING}


def test_tuned_later_it_is_served_so_from_its_next_load_on(
    control: Control, engine: FakeEngine, archive: Path, pack: Archive
) -> None:
    raw = archive.read_bytes()
    control.service.register(archive)
    assert engine.served == {("tagger", 1): None}
    archive.write_bytes(raw)
    registration = control.service.register(archive, tuning=tuning_of(pack()))
    assert (registration.already_registered, registration.retuned, registration.state) == (
        True,
        True,
        State.READY,
    )
    assert engine.loads == [("tagger", 1)]
    assert control.ledger.events("tagger")[-1].kind == "tuned"
    assert control.ledger.version("tagger", 1).tuning == tuning_of(pack())

    control.service.unload("tagger", 1)
    archive.write_bytes(raw)
    registration = control.service.register(archive, tuning=tuning_of(pack()))
    assert (registration.already_registered, registration.retuned, registration.state) == (
        False,
        False,
        State.READY,
    )
    assert engine.served == {("tagger", 1): SERVING}


def test_a_retired_version_is_loaded_as_it_is_tuned_anew(
    control: Control, engine: FakeEngine, archive: Path, pack: Archive
) -> None:
    raw = archive.read_bytes()
    control.service.register(archive)
    control.service.unload("tagger", 1)
    for serving in (SERVING, SERVING.model_copy(update={"workers": 2})):
        archive.write_bytes(raw)
        registration = control.service.register(archive, tuning=tuning_of(pack(), serving))
        assert (registration.already_registered, registration.state) == (False, State.READY)
        assert engine.served[("tagger", 1)] == serving
        control.service.unload("tagger", 1)


def test_registered_without_a_tuning_it_is_served_as_all_are(
    control: Control, engine: FakeEngine, archive: Path, pack: Archive
) -> None:
    raw = archive.read_bytes()
    control.service.register(archive, tuning=tuning_of(pack()))
    archive.write_bytes(raw)
    registration = control.service.register(archive)
    assert (registration.already_registered, registration.retuned, registration.state) == (
        True,
        True,
        State.READY,
    )
    assert control.ledger.version("tagger", 1).tuning is None
    assert control.ledger.events("tagger")[-1].kind == "untuned"
    control.service.unload("tagger", 1)
    control.service.release("tagger", 1)
    assert engine.served == {("tagger", 1): None}


REASON = "its workers were not up after 120 s"


@pytest.mark.parametrize("way", ["register", "register again", "release", "restore"])
@pytest.mark.parametrize("fault", ["load", "probe"])
def test_what_cannot_be_loaded_as_tuned_is_loaded_without(
    control: Control, engine: FakeEngine, archive: Path, pack: Archive, way: str, fault: str
) -> None:
    key, raw = ("tagger", 1), archive.read_bytes()
    if way != "register":
        control.service.register(archive, tuning=tuning_of(pack()))
        archive.write_bytes(raw)
    if way in ("register again", "release"):
        control.service.unload(*key)
    if fault == "load":
        engine.fail_to_load_tuned[key] = REASON
    else:
        engine.answer_wrong_tuned.add(key)
    if way == "release":
        control.service.release(*key)
    elif way == "restore":
        engine.restart_bare("engine-0")
        control.service._lifecycle.restore(control.ledger.version(*key))
    else:
        registration = control.service.register(archive, tuning=tuning_of(pack()))
        assert (registration.state, registration.retuned) == (State.READY, False)
        assert (REASON if fault == "load" else "does not answer as it did") in registration.untuned
    assert engine.served == {key: None}
    assert key in engine.held["engine-0"]
    record = control.ledger.version(*key)
    assert record.tuning is None and record.state.routable
    (event,) = [each for each in control.ledger.events("tagger") if each.kind == "untuned"]
    assert event.detail["reason"]


def test_a_bad_tuning_takes_nothing_from_the_instances_that_serve(
    settings: Settings, gateway: FakeGateway, pack: Archive
) -> None:
    engine = FakeEngine(("engine-0", "engine-1"))
    control = assemble(settings, engine, gateway)
    copy = control.service.incoming / "upload.mar"
    copy.write_bytes(pack().read_bytes())
    control.service.register(copy, tuning=tuning_of(pack()))
    engine.restart_bare("engine-1")
    engine.fail_to_load_tuned[("tagger", 1)] = REASON
    control.service._lifecycle.restore(control.ledger.version("tagger", 1))
    assert all(("tagger", 1) in versions for versions in engine.held.values())
    assert engine.unloads == []
    control.stop()


def test_the_tuning_of_another_archive_is_refused(
    control: Control, archive: Path, pack: Archive
) -> None:
    with pytest.raises(TuningInvalid, match="another archive"):
        control.service.register(archive, tuning=tuning_of(pack(version=2)))
    assert control.service.models() == []


def test_it_lies_beside_the_archive(archive: Path) -> None:
    assert read_tuning(archive) is None
    file = tuning_file(archive)
    assert file.name == "upload.tuning.json"
    file.write_text(tuning_of(archive).model_dump_json(), encoding="utf-8")
    assert read_tuning(archive) == tuning_of(archive)
    archive.write_bytes(b"exported again")
    with pytest.raises(TuningInvalid, match="run `vlserve tune` again"):
        read_tuning(archive)
    file.write_text('{"serving": {"workers": 0}}', encoding="utf-8")
    with pytest.raises(TuningInvalid, match=r"upload\.tuning\.json: .*serving\.workers"):
        read_tuning(archive)


def test_only_what_was_tuned_differs_from_the_engine_s_settings() -> None:
    engine = EngineSettings(workers=3, queue_size=7)
    assert of_engine(engine).workers == 3
    assert tuned(engine, None) is engine
    settings = tuned(engine, SERVING)
    assert of_engine(settings) == SERVING
    assert settings.queue_size == 7


def test_a_ledger_from_before_tuning_is_read(control: Control, pack: Archive) -> None:
    copy = control.service.incoming / "upload.mar"
    copy.write_bytes(pack().read_bytes())
    control.service.register(copy)
    store = control.ledger.store
    control.stop()
    raw = sqlite3.connect(store / LEDGER)
    raw.execute("ALTER TABLE versions DROP COLUMN tuning")
    raw.execute("ALTER TABLE versions DROP COLUMN engine")
    raw.execute("ALTER TABLE versions DROP COLUMN signer")
    raw.execute("ALTER TABLE gray_releases DROP COLUMN salt")
    then = ("models", "versions", "releases", "events", "gray_releases")
    for (table,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        if table not in then and not table.startswith("sqlite_"):
            raw.execute(f"DROP TABLE {table}")
    indexes = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE 'CREATE INDEX%'"
    for (index,) in raw.execute(indexes).fetchall():
        raw.execute(f"DROP INDEX {index}")
    raw.execute("PRAGMA user_version = 2")
    raw.close()
    settings = Settings(model_store=store, state_dir=store.parent / "state")
    second = assemble(settings, FakeEngine(), FakeGateway())
    assert second.ledger.version("tagger", 1).tuning is None
    second.stop()


def test_an_untuned_version_waits_for_no_batch_on_triton() -> None:
    assert of_engine(EngineSettings()).max_batch_delay_ms == 1
    assert of_engine(EngineSettings(kind="triton")).max_batch_delay_ms == 0


def test_torchserve_is_never_told_0_which_it_reads_as_100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []
    monkeypatch.setattr(
        grpc_calls, "call", lambda address, method, request, *rest: requests.append(request)
    )
    on_triton = SERVING.model_copy(update={"max_batch_delay_ms": 0})
    for serving in (SERVING, on_triton):
        settings = tuned(EngineSettings(), serving)
        torchserve_grpc.register("127.0.0.1:1", "token", tmp_path / "m-1.mar", settings)
    assert [request.max_batch_delay for request in requests] == [3, 1]
