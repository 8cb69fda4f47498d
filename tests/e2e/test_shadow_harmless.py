"""A slow, dead or full shadow is felt by no client and costs bounded memory. Real Envoy."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.running_stack import RunningGateway, running_gateway, wait_until
from support.shadow_copies import ALL_COPIED, TIMEOUT_S, Engines, logged_copy, post
from vlserve.control.domain import Instance, Routing
from vlserve.control.gateway.envoy_clusters import COPIES_BYTES


def test_a_slow_shadow_delays_nobody_and_is_logged_as_late(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    engines[1].delay_s = 2 * TIMEOUT_S
    copies_under_way = []
    for n in range(10):
        assert post(copying_gateway, f"slow-{n}").status_code == 200
        copies_under_way.append(copying_gateway.gateway.in_flight("tagger", 2))
    assert all(copies_under_way), "an answer came after its copy had ended"
    assert copying_gateway.gateway.in_flight("tagger", 1) == 0
    lines = [logged_copy(copying_gateway, f"slow-{n}") for n in range(10)]
    assert {(line["status"], line["flags"]) for line in lines} == {(504, "UT")}
    assert copying_gateway.gateway.in_flight("tagger", 2) == 0


def test_a_dead_shadow_is_logged_and_felt_by_nobody(
    shadow_gateway: RunningGateway, engines: Engines
) -> None:
    with FakeTorchServe("engine-2", "token-of-2") as dead:
        to_dead = dead.instance(lacks=frozenset({("tagger", 1)}))
    alive = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    shadow_gateway.gateway.apply(Routing([ALL_COPIED], [alive, to_dead]))
    assert {post(shadow_gateway, f"dead-{n}").status_code for n in range(10)} == {200}
    lines = [logged_copy(shadow_gateway, f"dead-{n}") for n in range(10)]
    assert {(line["status"], line["flags"], line["version"]) for line in lines} == {
        (503, "UF", "2")
    }


def test_a_shadow_that_no_instance_holds_is_logged(
    shadow_gateway: RunningGateway, engines: Engines
) -> None:
    alone = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    shadow_gateway.gateway.apply(Routing([ALL_COPIED], [alone]))
    assert post(shadow_gateway, "nowhere").status_code == 200
    line = logged_copy(shadow_gateway, "nowhere")
    assert (line["status"], line["flags"], line["version"]) == (503, "UH", "2")


@pytest.mark.parametrize("reply", [Reply(507), Reply(0), Reply(503, "ServiceUnavailableException")])
def test_a_copy_is_not_tried_again(
    copying_gateway: RunningGateway, engines: Engines, reply: Reply
) -> None:
    request_id = f"once-{reply.status}"
    engines[1].replies.append(reply)
    assert post(copying_gateway, request_id).status_code == 200
    assert logged_copy(copying_gateway, request_id)["status"] == 503
    assert len(engines[1].seen) == 1


def test_a_request_that_is_tried_again_is_copied_once(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].replies.extend([Reply(507)] * 2)
    assert post(copying_gateway, "tried-again").status_code == 200
    assert logged_copy(copying_gateway, "tried-again")["status"] == 200
    assert (len(engines[0].seen), len(engines[1].seen)) == (3, 1)


def test_copies_under_way_are_bounded_and_take_no_room_from_requests(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    """More copies than the shadow may hold; requests to the same version go through."""
    most = COPIES_BYTES // copying_gateway.settings.gateway.max_body_bytes
    engines[1].delay_s = 0.5 * TIMEOUT_S
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: post(copying_gateway).status_code, range(2 * most)))
    assert set(statuses) == {200}
    copies = len(engines[1].seen)
    assert most / 2 < copies <= most
    response = copying_gateway.http.post("/predictions/tagger/2", content=b"x")
    assert (response.status_code, response.json()["version"]) == (200, 2)


def test_a_shadow_that_hangs_under_the_largest_bodies_costs_bounded_memory(
    tmp_path: Path, engines: Engines
) -> None:
    """It takes connections and reads nothing, so every copy stays in the gateway."""
    with running_gateway(tmp_path) as gateway, socket.create_server(("127.0.0.1", 0)) as listener:
        stable = engines[0].instance(lacks=frozenset({("tagger", 2)}))
        port = listener.getsockname()[1]
        shadow = Instance("hung", "127.0.0.1", port, "token", frozenset({("tagger", 1)}))
        gateway.gateway.apply(Routing([ALL_COPIED], [stable, shadow]))
        body = bytes(gateway.settings.gateway.max_body_bytes)
        most = COPIES_BYTES // len(body)
        for _ in range(most + 8):
            assert post(gateway, body=body).status_code == 200
            engines[0].seen.clear()
        assert gateway.gateway.in_flight("tagger", 2) == most
        memory = psutil.Process(gateway.process.pid).memory_info().rss
    print(f"the gateway took {memory / 1e6:.0f} MB")
    assert memory < 2 * COPIES_BYTES


def test_a_client_that_goes_away_leaves_its_copy(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    for engine in engines:
        engine.delay_s = 0.5 * TIMEOUT_S
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: left\r\n"
    address = ("127.0.0.1", copying_gateway.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 1\r\n\r\nx")
        wait_until(lambda: engines[1].seen)
    assert logged_copy(copying_gateway, "left")["status"] == 200
