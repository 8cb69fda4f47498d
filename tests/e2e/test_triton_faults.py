"""What clients see while a stub of Triton dies. Triton 2.51 never replaces one."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import httpx
import psutil
import pytest

from support.request_bodies import JPEG
from support.running_stack import RunningGateway, running_gateway
from support.running_triton import RunningTriton, need_triton, running_triton
from vlserve.control.domain import ModelRoute, Routing
from vlserve.exporter.echo import pack_echo

pytestmark = [pytest.mark.long, pytest.mark.server]

CLIENTS = 4
BEFORE, AFTER = 10, 40


@pytest.fixture
def two_stubs(tmp_path: Path) -> Iterator[RunningTriton]:
    need_triton()
    archive = pack_echo(tmp_path, "m", 1, delay_ms=20)
    with running_triton(tmp_path / "triton", [archive], workers=2) as triton:
        yield triton


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path / "gateway", timeout_s=60.0) as gateway:
        yield gateway


def test_a_stub_that_dies_costs_no_request(
    gateway: RunningGateway, two_stubs: RunningTriton
) -> None:
    """Each batch that a dead stub gets is an error of Triton's after a second; the gateway asks
    again, and the other stub answers."""
    route = ModelRoute("m", {1: 100}, (1,))
    gateway.gateway.apply(Routing([route], [two_stubs.instance()]))

    def ask(_: int) -> int:
        url = f"{gateway.settings.gateway_url}/predictions/m"
        files, data = {"image": JPEG}, {"text": "cat"}
        return httpx.post(url, files=files, data=data, timeout=60, trust_env=False).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        before = list(pool.map(ask, range(BEFORE)))
        after = pool.map(ask, range(AFTER))
        os.kill(_a_stub(two_stubs), signal.SIGKILL)
        assert Counter(chain(before, after)) == {200: BEFORE + AFTER}


def _a_stub(triton: RunningTriton) -> int:
    """Return the process id of one stub."""
    children = psutil.Process(triton.pid).children(recursive=True)
    return int(
        next(child.pid for child in children if child.name() == "triton_python_backend_stub")
    )
