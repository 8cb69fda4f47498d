"""What Triton's instance does when an unload is slow, a disk is full, or a mend comes too late."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import psutil
import pytest

from vlserve.control import caller
from vlserve.control.engine import (
    grpc_calls,
    triton_grpc,
    triton_mender,
    triton_repository,
    triton_workers,
)
from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.control.engine.triton_instance import TritonInstance
from vlserve.control.engine.triton_repository import TritonRepository
from vlserve.control.engine.triton_workers import Worker
from vlserve.errors import ControlError, LoadFailed
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

Patch = pytest.MonkeyPatch
KEY = ("tagger", 1)


class SlowTriton(grpc.GenericRpcHandler):
    """A gRPC server on a free port of loopback, which answers once it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            self.let_go.wait(60.0)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        self.let_go.set()
        self._server.stop(None).wait()


@pytest.fixture
def slow() -> Iterator[SlowTriton]:
    server = SlowTriton()
    yield server
    server.close()


@pytest.fixture
def endpoint(settings: Settings) -> Endpoint:
    endpoint = endpoints(settings)[0]
    endpoint.store.mkdir(parents=True)
    return endpoint


@pytest.fixture
def instance(endpoint: Endpoint, monkeypatch: Patch) -> Iterator[TritonInstance]:
    """One that lists nothing, and of which no worker runs."""
    with httpx.Client() as http:
        instance = TritonInstance(endpoint, EngineSettings(workers=2), http)
        monkeypatch.setattr(instance, "_index", dict)
        yield instance
        instance.close()


def test_an_unload_goes_on_when_its_caller_went_away(slow: SlowTriton, monkeypatch: Patch) -> None:
    """As after a load that nobody waits for any more, which is taken away again."""
    monkeypatch.setattr(grpc_calls, "_LOOK_S", 0.01)
    wait_for = grpc_calls._wait_for

    def wait_for_slow(call: Any, reason: str) -> None:
        threading.Timer(0.1, slow.let_go.set).start()  # some looks later
        wait_for(call, reason)

    monkeypatch.setattr(grpc_calls, "_wait_for", wait_for_slow)
    with caller.working_for(lambda: True):
        triton_grpc.unload(slow.address, "token", "tagger-1")
    assert slow.let_go.is_set()


def test_an_unload_without_an_answer_in_time_says_so(slow: SlowTriton, monkeypatch: Patch) -> None:
    monkeypatch.setattr(triton_grpc, "_UNLOAD_TIMEOUT_S", 0.05)
    with pytest.raises(ControlError, match=r"did not unload tagger-1: no answer within 0\.05 s"):
        triton_grpc.unload(slow.address, "token", "tagger-1")


def test_nothing_is_kept_of_versions_that_went(instance: TritonInstance) -> None:
    for version in range(1, 4):
        instance.remove("tagger", version)
        assert not instance._locks
    with instance._lock(KEY):
        assert not instance._lock(KEY).acquire(blocking=False)


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_a_failed_load(
    instance: TritonInstance, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton_repository, "unpack_archive", _full_disk)
    with pytest.raises(LoadFailed, match="No space left on device"):
        instance.load(*KEY, tmp_path / "tagger-1.mar", None)


def test_a_full_disk_leaves_a_written_version_as_it_was(
    endpoint: Endpoint, monkeypatch: Patch, tmp_path: Path
) -> None:
    repository = TritonRepository(endpoint)
    repository.write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=2))
    files = [
        endpoint.folder / "repository" / "tagger-1" / "config.pbtxt",
        endpoint.store / "tagger-1.json",
    ]
    before = [file.read_text(encoding="utf-8") for file in files]
    whole = Path.write_text

    def half(file: Path, text: str, **options: Any) -> None:
        whole(file, text[: len(text) // 2], **options)
        _full_disk()

    monkeypatch.setattr(Path, "write_text", half)
    version = repository.read(*KEY)
    assert version is not None
    with pytest.raises(OSError, match="No space"):
        repository.put(*KEY, version.with_numbers([1]).filled_up())
    assert [file.read_text(encoding="utf-8") for file in files] == before
    assert not list(endpoint.folder.rglob(".*"))


class Process:
    """As much of a process as is counted."""

    def __init__(self, pid: int, status: str = psutil.STATUS_SLEEPING) -> None:
        self.pid = pid
        self._status = status

    def status(self) -> str:
        return self._status

    def kill(self) -> None:
        self._status = psutil.STATUS_DEAD


class Fleet:
    """The workers of one version, and a Triton that starts and ends them as is written."""

    def __init__(self, endpoint: Endpoint, archive: Path, workers: int = 2) -> None:
        self.repository = TritonRepository(endpoint)
        self.repository.write(*KEY, archive, EngineSettings(workers=workers))
        self.loads: list[tuple[int, ...]] = []
        """The numbers that were written, at each load."""
        self.living = [_worker(number) for number in self.written]
        self.while_starting: list[Callable[[], None]] = []

    @property
    def written(self) -> tuple[int, ...]:
        version = self.repository.read(*KEY)
        assert version is not None
        return version.numbers

    def workers(self) -> Mapping[Path, list[Worker]]:
        return {self.repository.code_folder(*KEY): list(self.living)}

    def load(self, *_: object) -> None:
        self.loads.append(self.written)
        numbers = {worker.number for worker in self.living}
        self.living += [_worker(number) for number in self.written if number not in numbers]
        for call in self.while_starting:
            call()

    def die(self, number: int) -> None:
        self.living = [worker for worker in self.living if worker.number != number]


def _worker(number: int, status: str = psutil.STATUS_SLEEPING) -> Worker:
    return Worker(Process(1000 + number, status), number)  # type: ignore[arg-type]


@pytest.fixture
def fleet(
    instance: TritonInstance, endpoint: Endpoint, monkeypatch: Patch, tmp_path: Path
) -> Fleet:
    fleet = Fleet(endpoint, pack_echo(tmp_path, *KEY))
    monkeypatch.setattr(instance, "_index", lambda: {KEY: "READY"})
    monkeypatch.setattr(instance, "_tokens", lambda: {"management": "token"})
    monkeypatch.setattr(instance, "_workers", fleet.workers)
    monkeypatch.setattr(instance, "_server", lambda: "runs")
    monkeypatch.setattr(triton_grpc, "load", fleet.load)
    return fleet


def test_a_dead_worker_is_taken_out_before_another_starts(
    instance: TritonInstance, fleet: Fleet
) -> None:
    fleet.die(1)
    instance._mender.mend_now(KEY)
    assert fleet.loads == [(2,), (2, 3)]
    instance._mender.mend_now(KEY)  # as where two told of the death
    assert fleet.loads == [(2,), (2, 3)]
    assert instance.loaded()[KEY].workers_ready == 2


def test_the_only_ones_that_are_dead_are_replaced_at_once(
    instance: TritonInstance, fleet: Fleet
) -> None:
    """Triton takes no version without a group."""
    fleet.living.clear()
    instance._mender.mend_now(KEY)
    assert fleet.loads == [(3, 4)]


def test_a_load_of_what_lost_all_its_workers_unloads_nothing(
    instance: TritonInstance, fleet: Fleet, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton_grpc, "unload", lambda *call: pytest.fail("it was unloaded"))
    fleet.living.clear()
    instance.load(*KEY, tmp_path / "tagger-1.mar", None)
    assert fleet.loads == [(3, 4)]
    instance.load(*KEY, tmp_path / "tagger-1.mar", None)
    assert fleet.loads == [(3, 4)]


def test_what_dies_while_others_start_is_taken_out_too(
    instance: TritonInstance, fleet: Fleet, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(triton_mender, "_AFTER_START_S", 600.0)
    fleet.die(1)
    fleet.while_starting.append(lambda: fleet.die(2) if len(fleet.loads) == 2 else None)
    instance._mender.mend_now(KEY)
    assert fleet.loads == [(2,), (2, 3), (3,)]
    instance._mender.mend_now(KEY)  # so soon after the last start, none is started
    assert fleet.loads == [(2,), (2, 3), (3,)]


def test_a_stopped_worker_is_killed_and_replaced(instance: TritonInstance, fleet: Fleet) -> None:
    worker = _worker(1, psutil.STATUS_STOPPED)
    fleet.living = [worker, _worker(2)]
    assert instance.loaded()[KEY].workers_ready == 1
    fleet.while_starting.append(lambda: fleet.die(1))
    instance._mender.mend_now(KEY)
    assert worker.process.status() == psutil.STATUS_DEAD
    assert fleet.loads == [(2,), (2, 3)]


def test_a_version_that_was_removed_meanwhile_is_left_alone(
    instance: TritonInstance, fleet: Fleet
) -> None:
    fleet.die(1)
    fleet.repository.remove(*KEY)
    instance._mender.mend_now(KEY)
    assert fleet.loads == []


def test_workers_that_died_with_their_server_are_left_to_its_start(
    instance: TritonInstance, fleet: Fleet, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "_server", lambda: None)
    fleet.living.clear()
    instance._mender.mend_now(KEY)
    assert fleet.loads == []
    assert "engine-0 does not run" in caplog.text


def test_workers_that_start_are_not_counted(instance: TritonInstance, fleet: Fleet) -> None:
    """Else who waits for all is told too early."""
    ready: list[int] = []
    fleet.while_starting.append(lambda: ready.append(instance.loaded()[KEY].workers_ready))
    fleet.die(1)
    instance._mender.mend_now(KEY)
    assert ready == [1, 1]
    assert instance.loaded()[KEY].workers_ready == 2


def test_a_mend_under_way_does_not_keep_the_service_from_its_end(
    instance: TritonInstance,
    endpoint: Endpoint,
    slow: SlowTriton,
    monkeypatch: Patch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(grpc_calls, "_LOOK_S", 0.01)
    monkeypatch.setattr(instance, "_tokens", lambda: {"management": "token"})
    monkeypatch.setattr(instance, "_grpc", slow.address)
    monkeypatch.setattr(instance, "_server", lambda: "runs")
    monkeypatch.setattr(instance, "_workers", dict)
    TritonRepository(endpoint).write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=2))
    start, load = threading.Event(), triton_grpc.load

    def slow_load(*call: Any) -> None:
        start.set()
        load(*call)

    monkeypatch.setattr(triton_grpc, "load", slow_load)
    instance._mender.mend(KEY)
    assert start.wait(60.0)
    instance.close()
    assert "tagger 1 were not replaced: the load was stopped" in caplog.text


@pytest.mark.parametrize(
    ("numbers", "last", "waits_s"),
    [((1, 2), 2, 10.0), ((1, 2, 3), 3, 1.0), ((1, 4), 4, 1.0)],
    ids=["none", "one, not yet noticed", "one that was replaced"],
)
def test_an_unload_waits_less_where_a_worker_died(
    instance: TritonInstance,
    endpoint: Endpoint,
    monkeypatch: Patch,
    tmp_path: Path,
    numbers: tuple[int, ...],
    last: int,
    waits_s: float,
) -> None:
    """Triton may wait for what a dead worker had, for ever: what is left is killed."""
    repository = TritonRepository(endpoint)
    repository.write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=3))
    version = repository.read(*KEY)
    assert version is not None
    repository.put(*KEY, replace(version, numbers=numbers, drawn=last))
    workers = [Worker(cast(psutil.Process, object()), number) for number in (1, 2)]
    timeouts: list[float] = []
    kills: list[object] = []
    monkeypatch.setattr(instance, "_living", lambda *_: workers)
    monkeypatch.setattr(instance, "_state", lambda *_: "READY")
    monkeypatch.setattr(instance, "_tokens", lambda: {"management": "token"})
    monkeypatch.setattr(triton_grpc, "unload", lambda *_: None)
    monkeypatch.setattr(triton_workers, "kill", kills.extend)
    monkeypatch.setattr(
        triton_workers,
        "wait_until_gone",
        lambda processes, timeout_s: timeouts.append(timeout_s) or list(processes),
    )
    instance.remove(*KEY)
    assert timeouts[0] == waits_s
    assert kills == [worker.process for worker in workers]
    assert repository.read(*KEY) is None
