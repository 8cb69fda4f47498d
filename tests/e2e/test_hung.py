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
def own_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Two instances with one worker each, and a gateway with room for few connections."""
    folder = tmp_path_factory.mktemp("watched")
    defaults = make_settings(folder, engine_kind, try_timeout_s=1.0)
    engine = EngineSettings(
        kind=engine_kind,
        instances=2,
        workers=1,
        hang_timeout_s=HANG_TIMEOUT_S,
        response_timeout_s=5,
    )
    envoy = defaults.config_dir / "gateway" / "envoy.yaml"
    text = envoy.read_text(encoding="utf-8")
    limit = "max_active_downstream_connections: "
    assert text.count(limit) == 1
    head, _, tail = text.partition(limit)
    envoy.write_text(f"{head}{limit}{FEW_CONNECTIONS}\n{tail.partition(chr(10))[2]}", "utf-8")
    settings = with_free_ports(Settings.model_validate(defaults.model_dump() | {"engine": engine}))
    with running_stack(settings) as stack:
        stack.control.register(pack_echo(folder, "tagger", 1))
        stack.control.release("tagger", 1)
        yield stack


def _pid(own_stack: RunningStack, program: str) -> int:
    """The process id of a program; 0 while it is being started."""
    pids = {each.name: each.pid for each in control_stack.status(own_stack.settings)}
    return pids[program] or 0


def _health(own_stack: RunningStack) -> str:
    return own_stack.control.health().status


def _is_well(own_stack: RunningStack) -> bool:
    return _health(own_stack) == "ok"


@contextmanager
def _asking(own_stack: RunningStack) -> Iterator[list[int]]:
    """Ask 5 times a second, each from a thread of its own; yields the statuses of the answers."""
    statuses: list[int] = []
    threads: list[threading.Thread] = []
    enough = threading.Event()

    def ask() -> None:
        url = f"{own_stack.gateway_url}/predictions/tagger"
        statuses.append(httpx.post(url, json=QUESTION, timeout=30, trust_env=False).status_code)

    def keep_asking() -> None:
        while not enough.wait(0.2):
            threads.append(threading.Thread(target=ask))
            threads[-1].start()

    caller = threading.Thread(target=keep_asking)
    caller.start()
    try:
        yield statuses
    finally:
        enough.set()
        caller.join()
        for each in threads:
            each.join()


@pytest.mark.long
def test_a_suspended_instance_costs_no_request_is_told_and_replaced(
    own_stack: RunningStack, tmp_path: Path
) -> None:
    own_stack.control.register(pack_echo(tmp_path, "tagger", 2))
    own_stack.control.release("tagger", 2)
    pid = _pid(own_stack, "engine-0")
    with _asking(own_stack) as statuses:
        wait_until(lambda: len(statuses) > 5)
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        wait_until(lambda: "engine-0 takes questions and answers none" in _health(own_stack), 30)
        assert own_stack.control.rollback("tagger").version == 1  # goes on without the other
        wait_until(lambda: _pid(own_stack, "engine-0") not in (0, pid), 60)
        wait_until(lambda: _is_well(own_stack), 120)
        time.sleep(1.0)  # the instance that came back answers too
    assert set(statuses) == {200}
    assert not psutil.pid_exists(pid)


def test_a_suspended_worker_is_replaced(own_stack: RunningStack) -> None:
    stable = own_stack.control.model("tagger").stable
    assert stable
    pid = worker_pids(own_stack.settings, "tagger")[stable][0]
    with _asking(own_stack) as statuses:
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        wait_until(lambda: not psutil.pid_exists(pid), 60)
        wait_until(lambda: len(worker_pids(own_stack.settings, "tagger")[stable]) == 1, 60)
    assert set(statuses) == {200}
    wait_until(lambda: _is_well(own_stack), 60)


@pytest.mark.long
def test_a_suspended_gateway_is_told_and_replaced(own_stack: RunningStack) -> None:
    pid = _pid(own_stack, "gateway")
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    wait_until(lambda: "the gateway does not answer its clients" in _health(own_stack), 60)
    wait_until(lambda: _pid(own_stack, "gateway") not in (0, pid), 60)
    wait_until(lambda: _is_well(own_stack), 60)


def test_health_tells_that_all_connections_of_the_gateway_are_taken(
    own_stack: RunningStack,
) -> None:
    address = (own_stack.settings.gateway.host, own_stack.settings.gateway.port)
    with ExitStack() as connections:
        for _ in range(FEW_CONNECTIONS):
            connections.enter_context(socket.create_connection(address))
        wait_until(lambda: "the gateway does not answer its clients" in _health(own_stack), 30)
    wait_until(lambda: _is_well(own_stack), 30)


def test_health_tells_that_the_gateway_was_drained_and_up_opens_it_again(
    own_stack: RunningStack,
) -> None:
    with closing(EnvoyGateway(own_stack.settings)) as gateway:
        gateway.drain(timeout_s=1.0)
    wait_until(lambda: "the gateway does not answer its clients" in _health(own_stack), 30)
    control_stack.up(own_stack.settings, print)
    assert _health(own_stack) == "ok"
