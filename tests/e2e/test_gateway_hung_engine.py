"""What the gateway does with an engine instance that takes requests and answers none. Real Envoy;
the engines are stand-ins."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.running_stack import RunningGateway, running_gateway, wait_until
from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.envoy_admin import EnvoyAdmin
from vlserve.control.gateway.envoy_config import admin_socket

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
TRY_TIMEOUT_S, TIMEOUT_S = 0.5, 10.0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("impatient")
    with running_gateway(folder, timeout_s=TIMEOUT_S, try_timeout_s=TRY_TIMEOUT_S) as gateway:
        yield gateway


@pytest.fixture
def gateway(impatient: RunningGateway, engines: Engines) -> RunningGateway:
    impatient.route(TAGGER, to=list(engines))
    return impatient


def _post(gateway: RunningGateway) -> httpx.Response:
    return gateway.http.post("/predictions/tagger", content=b"x")


def _ejected(gateway: RunningGateway) -> int:
    admin = EnvoyAdmin(admin_socket(gateway.settings))
    try:
        return admin.sum(r"^cluster\.tagger-1\.outlier_detection\.ejections_active$")
    finally:
        admin.close()


def test_a_hung_instance_loses_no_request_and_is_left_alone(
    gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].held.set()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _post(gateway), range(60)))
    assert {(each.status_code, each.json()["engine"]) for each in answers} == {(200, "engine-1")}
    assert engines[0].seen  # it was asked
    wait_until(lambda: _post(gateway).is_success and _ejected(gateway) == 1)
    requests = len(engines[0].seen)
    assert {_post(gateway).json()["engine"] for _ in range(20)} == {"engine-1"}
    assert len(engines[0].seen) == requests
    engines[0].held.clear()
    wait_until(lambda: _ejected(gateway) == 0)
    assert {_post(gateway).json()["engine"] for _ in range(40)} == {"engine-0", "engine-1"}


def test_a_slow_answer_counts_though_another_instance_was_asked_as_well(
    gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].delay_s = engines[1].delay_s = 2 * TRY_TIMEOUT_S
    answer = _post(gateway)
    assert answer.status_code == 200
    assert [len(engine.seen) for engine in engines] == [1, 1]


def test_an_instance_that_says_errors_is_not_taken_for_hung(
    gateway: RunningGateway, engines: Engines
) -> None:
    """Whether a version answers well is what a rollout judges."""
    engines[0].replies.extend([Reply(500), Reply(503)] * 50)
    for _ in range(60):
        _post(gateway)
    assert _ejected(gateway) == 0


def test_the_only_instance_is_asked_once_and_waited_for(
    impatient: RunningGateway, engines: Engines
) -> None:
    impatient.route(TAGGER, to=[engines[0]])
    engines[0].delay_s = 2 * TRY_TIMEOUT_S
    assert _post(impatient).status_code == 200
    assert len(engines[0].seen) == 1
