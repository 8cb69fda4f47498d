"""What Triton's instance does when an unload is slow, a disk is full, or a mend comes too late."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from vlserve.control import caller
from vlserve.control.engine import grpc_calls, triton_grpc, triton_repository, triton_workers
from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.control.engine.triton_instance import TritonInstance
from vlserve.control.engine.triton_repository import TritonRepository
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

    def wait_for_slow(under_way: Any, stopped: str) -> None:
        threading.Timer(0.1, slow.let_go.set).start()  # some looks later
        wait_for(under_way, stopped)

    monkeypatch.setattr(grpc_calls, "_wait_for", wait_for_slow)
    with caller.working_for(lambda: True):
        triton_grpc.unload(slow.address, "token", "tagger-1")
    assert slow.let_go.is_set()


def test_an_unload_without_an_answer_in_time_says_so(slow: SlowTriton, monkeypatch: Patch) -> None:
    monkeypatch.setattr(triton_grpc, "_UNLOAD_TIMEOUT_S", 0.05)
    with pytest.raises(ControlError, match=r"did not unload tagger-1: no answer within 0\.05 s"):
        triton_grpc.unload(slow.address, "token", "tagger-1")


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
    with pytest.raises(OSError, match="No space"):
        repository.rewrite(*KEY)
    assert [file.read_text(encoding="utf-8") for file in files] == before
    assert not list(endpoint.folder.rglob(".*"))


def test_a_mend_that_comes_too_late_loads_nothing(
    instance: TritonInstance, endpoint: Endpoint, monkeypatch: Patch, tmp_path: Path
) -> None:
    """Mends of one version queue up while others are slow; the first of them was enough."""
    loads: list[str] = []
    monkeypatch.setattr(triton_grpc, "load", lambda *call: loads.append(call[2]))
    monkeypatch.setattr(instance, "_tokens", lambda: {"management": "token"})
    instance._mend(KEY)  # it was removed meanwhile
    assert loads == []
    repository = TritonRepository(endpoint)
    repository.write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=2))
    instance._mend(KEY)
    assert loads == ["tagger-1"]
    monkeypatch.setattr(instance, "_answering", lambda workers: 2)
    instance._mend(KEY)
    assert loads == ["tagger-1"]
    written = repository.read(*KEY)
    assert written is not None and written.mended == 1


class Worker:
    """As much of a process as is counted."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def status(self) -> str:
        return psutil.STATUS_SLEEPING


def test_workers_that_start_or_end_are_not_counted_while_others_serve(
    instance: TritonInstance, endpoint: Endpoint, monkeypatch: Patch, tmp_path: Path
) -> None:
    """Else one that dies meanwhile is not missed, and who waits for all is told too early."""
    repository = TritonRepository(endpoint)
    repository.write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=2))
    living = [Worker(1)]  # of two
    monkeypatch.setattr(instance, "_index", lambda: {KEY: "READY"})
    monkeypatch.setattr(instance, "_tokens", lambda: {"management": "token"})
    monkeypatch.setattr(instance, "_workers", lambda: {repository.code_folder(*KEY): living})
    ready: list[int] = []

    def count(*_: object) -> None:
        ready.append(instance.loaded()[KEY].workers_ready)

    def load(*_: object) -> None:
        living.extend((Worker(2), Worker(3)))
        count()

    def wait(workers: list[Worker], timeout_s: float) -> list[Worker]:
        count()
        living.remove(living[-1])  # a new one dies beside the old one, which has not ended yet
        count()
        return []

    monkeypatch.setattr(triton_grpc, "load", load)
    monkeypatch.setattr(triton_workers, "wait_until_gone", wait)
    instance._mend(KEY)
    assert ready[:3] == [1, 2, 1]


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
    TritonRepository(endpoint).write(*KEY, pack_echo(tmp_path, *KEY), EngineSettings(workers=2))
    began, load = threading.Event(), triton_grpc.load

    def slow_load(*call: Any) -> None:
        began.set()
        load(*call)

    monkeypatch.setattr(triton_grpc, "load", slow_load)
    instance._menders.submit(instance._mend, KEY)
    assert began.wait(60.0)
    instance.close()
    assert "tagger 1 were not replaced: the load was stopped" in caplog.text
