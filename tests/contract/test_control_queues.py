"""What waits for what in the control service: slow loads never keep a rollback or health waiting,
and nobody is worked for who went away."""

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from fastapi import HTTPException, Request

from support.control_api_server import RunningControl
from support.running_stack import wait_until
from vlserve.control.api.threads import MOST_LOADS, Threads
from vlserve.control.caller import is_gone
from vlserve.control.domain import State, VersionRecord
from vlserve.control.lifecycle.lifecycle import Lifecycle
from vlserve.control.rollouts.report import RolloutReport
from vlserve.control.rollouts.service import RolloutService
from vlserve.errors import ControlBusy, NotReady, StillServing
from vlserve.exporter.echo import pack_echo

SLOW = 45
WAITING = 20
"""Of releases of a version that is being loaded: more than there are threads for traffic words."""
OCTETS = "application/octet-stream"


@pytest.fixture(scope="module")
def slow_archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slow")
    return [pack_echo(folder, f"slow-{number}", 1) for number in range(SLOW)]


@pytest.fixture
def callers() -> Iterator[ExitStack]:
    """The connections of those who asked for a load; closing it, they go away."""
    with ExitStack() as connections:
        yield connections


def ask_to_register(control: RunningControl, archive: Path) -> socket.socket:
    """Send an archive, and do not wait for the answer."""
    url = httpx.URL(control.url)
    caller = socket.create_connection((url.host, url.port), timeout=30)
    _send(caller, control, f"/versions?name={archive.name}", OCTETS, archive.read_bytes())
    return caller


def ask_to_release(control: RunningControl, model: str, version: int = 1) -> socket.socket:
    """Ask for a version at once, and do not wait for the answer."""
    body = json.dumps({"version": version, "now": True}).encode()
    return _ask(control, f"/models/{model}/releases", body)


def ask_to_roll_back(control: RunningControl, model: str) -> socket.socket:
    return _ask(control, f"/models/{model}/rollback", b"{}")


def _ask(control: RunningControl, path: str, body: bytes) -> socket.socket:
    url = httpx.URL(control.url)
    caller = socket.create_connection((url.host, url.port), timeout=30)
    _send(caller, control, path, "application/json", body)
    return caller


def _send(
    caller: socket.socket, control: RunningControl, path: str, kind: str, body: bytes
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {control.key}\r\n"
    head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    caller.sendall(head.encode() + body)


def begun(control: RunningControl) -> list[str]:
    return [model.model for model in control.client.models() if model.model.startswith("slow-")]


def test_a_rollback_and_health_do_not_wait_behind_slow_loads(
    control_api: RunningControl,
    archives: list[Path],
    slow_archives: list[Path],
    callers: ExitStack,
) -> None:
    client, engine = control_api.client, control_api.engine
    for archive in archives[:2]:
        client.register(archive)
    client.release("tagger", 1)
    client.release("tagger", 2)
    engine.hold_loads.clear()
    for archive in slow_archives:
        callers.enter_context(ask_to_register(control_api, archive))
    limit = control_api.settings.control.loads_at_once
    wait_until(lambda: len(begun(control_api)) == limit)
    for _ in range(WAITING):
        callers.enter_context(ask_to_release(control_api, begun(control_api)[0]))
    assert client.health().status == "ok"
    assert client.rollback("tagger").version == 1
    assert client.release("tagger", 2).version == 2
    assert len(begun(control_api)) == limit

    callers.close()  # all 45 give up
    wait_until(lambda: list(incoming(control_api)) == [])
    wait_until(lambda: {state_of(control_api, model) for model in begun(control_api)} == {"failed"})
    assert len(begun(control_api)) == limit
    assert [key for key in engine.loads if key[0] != "tagger"] == []
    engine.hold_loads.set()
    assert not client.register(slow_archives[0]).already_registered  # its number was free


@pytest.fixture
def two_models(control_api: RunningControl, archives: list[Path], tmp_path: Path) -> RunningControl:
    """Both were released in version 1, then 2; version 1 of ``slow`` is unloaded since."""
    slow = [pack_echo(tmp_path, "slow", version) for version in (1, 2)]
    for archive in (*archives[:2], *slow):
        control_api.client.register(archive)
    for model, version in itertools.product(("tagger", "slow"), (1, 2)):
        control_api.client.release(model, version)
    control_api.client.unload("slow", 1)
    return control_api


def test_a_rollback_does_not_wait_behind_rollbacks_that_load(
    two_models: RunningControl, callers: ExitStack
) -> None:
    """Nor behind many that repeat it, because it takes long."""
    client, engine = two_models.client, two_models.engine
    engine.loading.clear()
    engine.hold_loads.clear()
    for _ in range(WAITING):
        callers.enter_context(ask_to_roll_back(two_models, "slow"))
    assert engine.loading.wait(timeout=30)
    assert client.rollback("tagger").version == 1
    assert client.health().status == "ok"
    engine.hold_loads.set()
    wait_until(lambda: client.model("slow").stable == 1)


def test_a_rollback_does_not_wait_behind_releases_of_what_is_worked_on(
    two_models: RunningControl, callers: ExitStack
) -> None:
    """A version that an engine lacks is loaded again, while its state says that it serves."""
    client, engine = two_models.client, two_models.engine
    engine.loading.clear()
    engine.hold_loads.clear()
    engine.restart_bare("engine-0")
    assert engine.loading.wait(timeout=30)
    for _ in range(WAITING):
        callers.enter_context(ask_to_release(two_models, "slow", 2))
        callers.enter_context(ask_to_release(two_models, "tagger", 2))
    with pytest.raises(NotReady, match="is being loaded again"):
        client.rollback("tagger")
    engine.hold_loads.set()
    wait_until(lambda: client.health().status == "ok")
    assert client.rollback("tagger").version == 1


def test_a_rollback_outlives_an_unload_that_begins_meanwhile(
    two_models: RunningControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes first, the traffic goes back."""
    client, look = two_models.client, Lifecycle.check_way_back
    states: list[State] = []

    def unload_first(self: Lifecycle, record: VersionRecord) -> None:
        look(self, record)
        if not states:
            states.append(client.unload("tagger", 1).state)

    monkeypatch.setattr(Lifecycle, "check_way_back", unload_first)
    assert client.rollback("tagger").version == 1
    assert states == [State.RETIRED]
    view = client.model("tagger")
    assert view.stable == 1 and view.versions[0].state is State.STABLE


@pytest.mark.parametrize("word", ["abort", "promote"])
def test_a_rollback_of_a_rollout_that_ends_meanwhile(
    two_models: RunningControl, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Who was before took the same traffic back, or gave it to the candidate."""
    client, abort = two_models.client, RolloutService.abort
    client.rollback("tagger")
    client.start_rollout("tagger", 2, {"weights": [50, 100], "hold_s": 60})

    def another_first(self: RolloutService, model: str) -> RolloutReport:
        monkeypatch.undo()
        getattr(client, word)(model)
        return abort(self, model)

    monkeypatch.setattr(RolloutService, "abort", another_first)
    if word == "abort":
        assert client.rollback("tagger").version == 1
        assert client.model("tagger").weights == {1: 100}
    else:
        with pytest.raises(NotReady, match="traffic of tagger moved meanwhile"):
            client.rollback("tagger")
        assert client.rollback("tagger").version == 1


def test_an_unload_does_not_outrun_a_rollback(
    two_models: RunningControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, drain = two_models.client, Lifecycle.start_draining

    def go_back_first(self: Lifecycle, record: VersionRecord) -> VersionRecord:
        client.rollback("tagger")
        return drain(self, record)

    monkeypatch.setattr(Lifecycle, "start_draining", go_back_first)
    with pytest.raises(StillServing, match="has traffic"):
        client.unload("tagger", 1)
    assert client.model("tagger").stable == 1


def incoming(control: RunningControl) -> Iterator[Path]:
    return (control.settings.model_store / ".incoming").iterdir()


def state_of(control: RunningControl, model: str) -> State:
    return control.client.model(model).versions[0].state


class Caller:
    """Stands for a request: it waits for its answer until it `leaves`."""

    def __init__(self) -> None:
        self.leaves = anyio.Event()

    async def receive(self) -> dict[str, str]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def test_what_has_not_begun_when_its_caller_leaves_is_not_carried_out() -> None:
    calls: list[str] = []

    async def play() -> int:
        threads, first, second = Threads(loads_at_once=1), Caller(), Caller()
        go_on = threading.Event()

        def slow() -> None:
            assert go_on.wait(timeout=30)
            calls.append("first")

        async def ask(caller: Caller, work: Callable[[], None]) -> None:
            await threads.load(cast(Request, caller), work)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, first, slow)
            await anyio.wait_all_tasks_blocked()
            second.leaves.set()
            with pytest.raises(HTTPException) as error:
                await ask(second, lambda: calls.append("second"))
            go_on.set()
        return error.value.status_code

    assert anyio.run(play) == 499
    assert calls == ["first"]


def test_a_traffic_word_that_has_begun_is_carried_out_whoever_waits() -> None:
    answers: list[bool] = []

    async def play() -> None:
        threads, caller = Threads(loads_at_once=1), Caller()
        start = threading.Event()

        def word() -> None:
            start.set()
            anyio.from_thread.run(leave.wait)
            answers.append(is_gone())

        leave = caller.leaves
        async with anyio.create_task_group() as group:
            group.start_soon(threads.move_traffic, cast(Request, caller), word)
            await anyio.to_thread.run_sync(start.wait, 30)
            leave.set()

    anyio.run(play)
    assert answers == [False]


def test_more_loads_than_may_wait_are_refused_before_they_are_received() -> None:
    threads = Threads(loads_at_once=1)
    with ExitStack() as loads:
        for _ in range(MOST_LOADS):
            loads.enter_context(threads.admitted_load())
        with pytest.raises(ControlBusy, match="try again later"), threads.admitted_load():
            pass
    with threads.admitted_load():
        pass
