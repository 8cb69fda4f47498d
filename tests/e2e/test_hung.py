"""What hangs while its process id is there: told by health, replaced, and no request is lost where
another instance answers. Real engines, Envoy and supervisord."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from support.background_load import QUESTION
from support.engine_workers import worker_pids
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from vlserve.control.domain import EngineKind
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.stack import stack as control_stack
from vlserve.testing import RunningStack, running_stack, with_free_ports

pytestmark = on_triton

HANG_TIMEOUT_S = 6.0
FEW_CONNECTIONS = 12


@pytest.fixture(scope="module")
def watched(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Two instances with one worker each, and a gateway with room for few connections."""
    folder = tmp_path_factory.mktemp("watched")
    made = make_settings(folder, engine_kind, try_timeout_s=1.0)
    engine = EngineSettings(
        kind=engine_kind,
        instances=2,
        workers=1,
        hang_timeout_s=HANG_TIMEOUT_S,
        response_timeout_s=5,
    )
    envoy = made.config_dir / "gateway" / "envoy.yaml"
    text = envoy.read_text(encoding="utf-8")
    limit = "max_active_downstream_connections: "
    assert text.count(limit) == 1
    head, _, tail = text.partition(limit)
    envoy.write_text(f"{head}{limit}{FEW_CONNECTIONS}\n{tail.partition(chr(10))[2]}", "utf-8")
    settings = with_free_ports(Settings.model_validate(made.model_dump() | {"engine": engine}))
    with running_stack(settings) as running:
        running.control.register(pack_echo(folder, "tagger", 1))
        running.control.release("tagger", 1)
        yield running


def _pid(running: RunningStack, program: str) -> int:
    """The process id of a program; 0 while it is being started."""
    known = {each.name: each.pid for each in control_stack.status(running.settings)}
    return known[program] or 0


def _health(running: RunningStack) -> str:
    return running.control.health().status


def _is_well(running: RunningStack) -> bool:
    return _health(running) == "ok"


@contextmanager
def _asking(running: RunningStack) -> Iterator[list[int]]:
    """Ask 5 times a second, each from a thread of its own; yields the statuses of the answers."""
    statuses: list[int] = []
    asking: list[threading.Thread] = []
    enough = threading.Event()

    def ask() -> None:
        url = f"{running.gateway_url}/predictions/tagger"
        statuses.append(httpx.post(url, json=QUESTION, timeout=30, trust_env=False).status_code)

    def keep_asking() -> None:
        while not enough.wait(0.2):
            asking.append(threading.Thread(target=ask))
            asking[-1].start()

    caller = threading.Thread(target=keep_asking)
    caller.start()
    try:
        yield statuses
    finally:
        enough.set()
        caller.join()
        for each in asking:
            each.join()


@pytest.mark.long
def test_a_suspended_instance_costs_no_request_is_told_and_replaced(
    watched: RunningStack, tmp_path: Path
) -> None:
    watched.control.register(pack_echo(tmp_path, "tagger", 2))
    watched.control.release("tagger", 2)
    pid = _pid(watched, "engine-0")
    with _asking(watched) as statuses:
        wait_until(lambda: len(statuses) > 5)
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        wait_until(lambda: "engine-0 takes questions and answers none" in _health(watched), 30)
        assert watched.control.rollback("tagger").version == 1  # goes on without the other
        wait_until(lambda: _pid(watched, "engine-0") not in (0, pid), 60)
        wait_until(lambda: _is_well(watched), 120)
        time.sleep(1.0)  # the instance that came back answers too
    assert set(statuses) == {200}
    assert not psutil.pid_exists(pid)


def test_a_suspended_worker_is_replaced(watched: RunningStack) -> None:
    stable = watched.control.model("tagger").stable
    assert stable
    pid = worker_pids(watched.settings, "tagger")[stable][0]
    with _asking(watched) as statuses:
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        wait_until(lambda: not psutil.pid_exists(pid), 60)
        wait_until(lambda: len(worker_pids(watched.settings, "tagger")[stable]) == 1, 60)
    assert set(statuses) == {200}
    wait_until(lambda: _is_well(watched), 60)


@pytest.mark.long
def test_a_suspended_gateway_is_told_and_replaced(watched: RunningStack) -> None:
    pid = _pid(watched, "gateway")
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    wait_until(lambda: "the gateway does not answer its clients" in _health(watched), 60)
    wait_until(lambda: _pid(watched, "gateway") not in (0, pid), 60)
    wait_until(lambda: _is_well(watched), 60)


def test_health_tells_that_all_connections_of_the_gateway_are_taken(watched: RunningStack) -> None:
    address = (watched.settings.gateway.host, watched.settings.gateway.port)
    with ExitStack() as opened:
        for _ in range(FEW_CONNECTIONS):
            opened.enter_context(socket.create_connection(address))
        wait_until(lambda: "the gateway does not answer its clients" in _health(watched), 30)
    wait_until(lambda: _is_well(watched), 30)


def test_health_tells_that_the_gateway_was_drained_and_up_opens_it_again(
    watched: RunningStack,
) -> None:
    with closing(EnvoyGateway(watched.settings)) as gateway:
        gateway.drain(timeout_s=1.0)
    wait_until(lambda: "the gateway does not answer its clients" in _health(watched), 30)
    control_stack.up(watched.settings, print)
    assert _health(watched) == "ok"
