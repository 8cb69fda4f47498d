"""The engine client against a real TorchServe: loads, failures that leave nothing, restarts."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from supervisor.datatypes import dict_of_key_value_pairs

from support.archive_members import Members
from support.forged_zips import HIDING
from support.running_stack import make_settings, wait_until
from vlserve.control.caller import working_for
from vlserve.control.domain import Key, LoadedVersion
from vlserve.control.engine import torchserve_grpc
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.group import EngineGroup
from vlserve.control.lifecycle.probes import failed_probes
from vlserve.errors import CallerGone, EngineUnavailable, LoadFailed
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.errors import ArchiveTampered
from vlserve.stack.supervisord import write_configuration


class RunningEngine:
    """One TorchServe as supervisord would run it, and the client under test."""

    def __init__(self, folder: Path) -> None:
        settings = make_settings(folder)
        slow = {"workers": 1, "load_timeout_s": 60.0}
        self.settings = settings.model_copy(
            update={"engine": settings.engine.model_copy(update=slow)}
        )
        (self.endpoint,) = endpoints(self.settings)
        self.client = EngineGroup([self.endpoint], self.settings.engine)
        self.settings.model_store.mkdir()
        self._log = (folder / "engine.log").open("ab")
        configuration = RawConfigParser()
        configuration.read(write_configuration(self.settings, folder / "no-gateway.json"))
        program = configuration["program:engine-0"]
        self._command = program["command"].replace("%%", "%")
        self._environment = dict_of_key_value_pairs(program["environment"].replace("%%", "%"))
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {self._command}"],
            env=os.environ | self._environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.instances()
                return
            except EngineUnavailable:
                assert self.process.poll() is None, "the engine died"
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        """Java and its workers, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self.client.close()
        self._log.close()

    def holds(self) -> dict[Key, LoadedVersion]:
        return dict(self.client.loaded()["engine-0"])

    def store(self, archive: Path, version: int) -> Path:
        """Where the control service keeps an archive of ``tagger``."""
        target = self.settings.model_store / "tagger" / str(version) / f"tagger-{version}.mar"
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(archive, target))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    engine = RunningEngine(tmp_path_factory.mktemp("engine"))
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def load(engine: RunningEngine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Load a good archive of tagger under this number."""
    folder = tmp_path_factory.mktemp("good")

    def do(version: int) -> Path:
        archive = engine.store(pack_echo(folder, "tagger", version), version)
        engine.client.load("tagger", version, archive)
        return archive

    return do


def with_handler(archive: Path, code: str) -> None:
    """Replace the handler's code; only TorchServe will look at this archive."""
    with zipfile.ZipFile(archive) as good:
        members = {name: good.read(name) for name in good.namelist()}
    members["torchserve_handler.py"] = code.encode()
    with zipfile.ZipFile(archive, "w") as bad:
        for name, content in members.items():
            bad.writestr(name, content)


def test_a_good_version_answers_its_probes_and_goes(
    engine: RunningEngine, load: Callable[[int], Path]
) -> None:
    archive = load(1)
    assert engine.holds() == {("tagger", 1): LoadedVersion(workers_ready=1, pending=0)}
    manifest = verify_archive(archive)
    instances = engine.client.instances()
    assert failed_probes(engine.client, instances, manifest, manifest.probes) == []
    other = manifest.model_copy(update={"version": 2})
    (wrong, *_) = failed_probes(engine.client, instances, other, manifest.probes)
    assert "tagger 2 on engine-0 answered 404" in wrong
    engine.client.load("tagger", 1, archive)  # what is there already stays as it is
    engine.client.unload("tagger", 1)
    assert engine.holds() == {}
    assert list(engine.endpoint.store.iterdir()) == []
    engine.client.unload("tagger", 1)


@pytest.mark.parametrize("hide", HIDING, ids=lambda hide: hide.__name__)
def test_a_member_that_only_torchserve_sees_would_run_there_and_is_refused(
    engine: RunningEngine, tmp_path: Path, hide: Callable[[Members, bytes], bytes]
) -> None:
    version = 20 + HIDING.index(hide)
    with zipfile.ZipFile(pack_echo(tmp_path, "tagger", version)) as good:
        members = {name: good.read(name) for name in good.namelist()}
    mark = tmp_path / "ran"
    forgery = tmp_path / "forged.mar"
    forgery.write_bytes(hide(members, f"open({str(mark)!r}, 'w')".encode()))
    with pytest.raises(ArchiveTampered):
        verify_archive(forgery)
    archive = engine.store(forgery, version)
    with suppress(LoadFailed):  # by then it has run
        engine.client.load("tagger", version, archive)
    engine.client.unload("tagger", version)
    assert mark.exists()


def test_of_two_first_versions_none_is_lost(
    engine: RunningEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdings: list[list[Key]] = []
    register = torchserve_grpc.register

    def spy(*arguments: Any) -> None:
        holdings.append(list(engine.holds()))
        register(*arguments)

    monkeypatch.setattr(torchserve_grpc, "register", spy)
    versions = (10, 11)
    archives = [engine.store(pack_echo(tmp_path, "tagger", number), number) for number in versions]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(engine.client.load, ["tagger"] * 2, versions, archives))
    assert set(engine.holds()) == {("tagger", number) for number in versions}
    assert sorted(map(len, holdings)) == [0, 1], "TorchServe was told of both at once"
    for number in versions:
        engine.client.unload("tagger", number)


def handler(initialize: str, first: str = "") -> str:
    return (
        f"import os, time\n{first}\nclass Handler:\n"
        f"    def initialize(self, context):\n        {initialize}\n"
        "    def handle(self, data, context):\n        return data\n"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (handler("raise RuntimeError('no graph ✗')"), "RuntimeError: no graph ✗"),
        (handler("pass", "import none"), "ModuleNotFoundError: No module named 'none'"),
        (
            handler("os.write(2, b'out of memory\\n'); os.abort()"),
            "out of memory; the worker was ended by a signal: Aborted",
        ),
    ],
    ids=["raises", "import", "crashes"],
)
def test_a_handler_that_fails_is_told_by_its_own_words_and_leaves_nothing(
    engine: RunningEngine, tmp_path: Path, code: str, reason: str
) -> None:
    archive = engine.store(pack_echo(tmp_path, "tagger", 2), 2)
    with_handler(archive, code)
    with pytest.raises(LoadFailed) as error:
        engine.client.load("tagger", 2, archive)
    assert str(error.value) == f"tagger 2 on engine-0: {reason}"
    assert engine.holds() == {}
    assert list(engine.endpoint.store.iterdir()) == []


def test_a_handler_that_hangs_is_given_up(engine: RunningEngine, tmp_path: Path) -> None:
    archive = engine.store(pack_echo(tmp_path, "tagger", 3), 3)
    with_handler(archive, handler("time.sleep(99)"))
    hasty = engine.settings.engine.model_copy(update={"load_timeout_s": 3.0})
    client = EngineGroup([engine.endpoint], hasty)
    with pytest.raises(LoadFailed, match=r"engine\.workers.*engine\.load_timeout_s"):
        client.load("tagger", 3, archive)
    client.close()
    assert engine.holds() == {}


def test_a_load_whose_caller_went_away_is_stopped_and_leaves_nothing(
    engine: RunningEngine, tmp_path: Path
) -> None:
    archive = engine.store(pack_echo(tmp_path, "tagger", 4), 4)
    with_handler(archive, handler("time.sleep(99)"))
    start = time.monotonic()
    with (
        working_for(lambda: time.monotonic() - start > 2.0),
        pytest.raises(CallerGone, match="the caller went away"),
    ):
        engine.client.load("tagger", 4, archive)
    assert engine.holds() == {}
    assert list(engine.endpoint.store.iterdir()) == []


def test_damaged_archives_leave_nothing_and_do_not_spoil_the_number(
    engine: RunningEngine, load: Callable[[int], Path], tmp_path: Path
) -> None:
    whole = pack_echo(tmp_path, "tagger", 4).read_bytes()
    for content in (whole[:500], random.randbytes(5000), None):
        archive = engine.store(tmp_path / "tagger-4.mar", 4)
        archive.unlink()
        if content is not None:
            archive.write_bytes(content)
        with pytest.raises(LoadFailed, match="tagger 4 on engine-0: "):
            engine.client.load("tagger", 4, archive)
        assert engine.holds() == {}
    (engine.endpoint.store / "tagger-4.mar").write_bytes(b"a copy that a crash left")
    load(4)
    engine.client.unload("tagger", 4)


def test_requests_go_on_while_a_version_comes_and_the_default_one_goes(
    engine: RunningEngine, load: Callable[[int], Path]
) -> None:
    load(6)  # TorchServe's default from now on: the first that was registered
    archive = load(7)
    probe = verify_archive(archive).probes[0]
    (instance,) = engine.client.instances()
    versions: list[int] = []
    stop: list[bool] = []

    def ask_until_done() -> None:
        while not stop:
            versions.append(engine.client.predict(instance, "tagger", 7, probe.fields)["version"])

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(ask_until_done) for _ in range(2)]
        try:
            load(8)
            engine.client.unload("tagger", 6)
            engine.client.unload("tagger", 8)
        finally:
            stop.append(True)
        for client in clients:
            client.result()
    assert set(versions) == {7}
    assert list(engine.holds()) == [("tagger", 7)]
    engine.client.unload("tagger", 7)
    assert engine.holds() == {}


def test_a_bare_restart_is_seen_with_new_tokens_and_takes_the_version_again(
    engine: RunningEngine, load: Callable[[int], Path]
) -> None:
    archive = load(10)
    (before,) = engine.client.instances()
    engine.kill()
    with pytest.raises(EngineUnavailable):
        engine.client.loaded()
    with pytest.raises(EngineUnavailable):
        engine.client.load("tagger", 10, archive)
    with pytest.raises(EngineUnavailable):
        engine.client.predict(before, "tagger", 10, {})
    engine.start()
    (after,) = engine.client.instances()
    assert after.token != before.token
    assert engine.holds() == {}
    engine.client.load("tagger", 10, archive)
    manifest = verify_archive(archive)
    assert failed_probes(engine.client, [after], manifest, manifest.probes) == []
    (wrong, *_) = failed_probes(engine.client, [before], manifest, manifest.probes)
    assert "InvalidKeyException" in wrong
    engine.client.unload("tagger", 10)


def test_a_load_that_another_client_started_is_waited_for(
    engine: RunningEngine, tmp_path: Path
) -> None:
    archive = engine.store(pack_echo(tmp_path, "tagger", 11), 11)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(engine.client.load, "tagger", 11, archive)
        wait_until(lambda: ("tagger", 11) in engine.holds())
        again = EngineGroup([engine.endpoint], engine.settings.engine)
        again.load("tagger", 11, archive)
        again.close()
        load.result()
    assert engine.holds()["tagger", 11].workers_ready == 1
    engine.client.unload("tagger", 11)


def test_tokens_are_private(engine: RunningEngine) -> None:
    assert engine.endpoint.key_file.stat().st_mode & 0o077 == 0
    assert "management" in json.loads(engine.endpoint.key_file.read_text(encoding="utf-8"))
