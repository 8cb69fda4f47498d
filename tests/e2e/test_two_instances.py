"""Two instances behind one gateway: what one loses, the other answers. Real engines, versions
without weights, clients at a bounded rate."""

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.background_load import QUESTION
from support.engine_workers import worker_pids
from support.engines import on_triton, torchserve_only
from support.running_stack import gateway_admin, wait_until
from vlserve.control.domain import EngineKind
from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.drill.crash import crash, release_both
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings
from vlserve.testing.clients import Load, Question, drawn_questions
from vlserve.testing.editions import Edition, echo_editions
from vlserve.testing.stack import RunningStack, running_stack, with_free_ports

pytestmark = on_triton

MODEL, SLOW_MODEL = "twofold", "slow"
SLOW_MS = 1000.0
"""Long enough for all of a few requests to be under way at once on a busy machine."""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    return drawn_questions(tmp_path_factory.mktemp("covers"), count=10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, questions: Sequence[Question]) -> list[Edition]:
    return list(islice(echo_editions(tmp_path_factory.mktemp("pair"), MODEL, questions), 2))


@pytest.fixture(scope="module")
def own_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory, pair: Sequence[Edition]
) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("twofold")
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        engine=EngineSettings(instances=2, workers=1, kind=engine_kind),
    )
    with running_stack(with_free_ports(settings)) as stack:
        release_both(stack, pair, MODEL)
        yield stack


@pytest.mark.parametrize("target", ["worker", pytest.param("engine", marks=pytest.mark.long)])
def test_what_is_killed_loses_no_request(
    own_stack: RunningStack, pair: Sequence[Edition], questions: Sequence[Question], target: str
) -> None:
    """kill -9 of one worker, and of one server with all its workers."""
    load = Load(own_stack.settings.gateway_url, MODEL, clients=6, rate_per_s=30.0)
    cost = crash(own_stack, target, pair, questions, load)
    print(cost)
    assert cost.requests > load.rate_per_s
    assert cost.lost == {} and cost.breaches == []


def _ask(own_stack: RunningStack, path: str, request_id: str) -> httpx.Response:
    headers = {"X-Request-Id": request_id}
    return own_stack.http.post(f"/predictions/{path}", json=QUESTION, headers=headers)


def _logged(own_stack: RunningStack, request_ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """The access log's lines of these requests."""
    log = own_stack.settings.state_dir / "logs" / "access.jsonl"

    def lines() -> list[Mapping[str, Any]]:
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return [line for line in entries if line["request_id"] in request_ids]

    wait_until(lambda: len(lines()) == len(request_ids))
    return lines()


def test_what_a_killed_worker_had_in_hand_is_answered_by_the_other_instance(
    own_stack: RunningStack, tmp_path: Path
) -> None:
    """TorchServe says 507 to it, Triton 500; what waited in that instance's queue waits for a new
    worker."""
    own_stack.control.register(pack_echo(tmp_path, SLOW_MODEL, 1, delay_ms=SLOW_MS))
    own_stack.control.release(SLOW_MODEL, 1)
    request_ids = [f"in-hand-{number}" for number in range(8)]
    pids = worker_pids(own_stack.settings, SLOW_MODEL)[1]  # asked later, it would have answered
    with ThreadPoolExecutor(len(request_ids)) as pool:
        futures = [pool.submit(_ask, own_stack, SLOW_MODEL, each) for each in request_ids]
        wait_until(lambda: _sent(own_stack, f"{SLOW_MODEL}-1") == len(request_ids))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        answers = [each.result() for each in futures]
    assert {answer.status_code for answer in answers} == {200}
    _assert_answered_by_the_other(own_stack, request_ids)


def _assert_answered_by_the_other(own_stack: RunningStack, request_ids: Sequence[str]) -> None:
    """What was tried again was, by the second instance, at the second try."""
    again = [line for line in _logged(own_stack, request_ids) if line["tries"] > 1]
    other = f"127.0.0.1:{endpoints(own_stack.settings)[1].inference_port}"
    assert again
    assert {(line["tries"], line["upstream"]) for line in again} == {(2, other)}


def _sent(own_stack: RunningStack, cluster: str) -> int:
    """Requests that the gateway has sent to a cluster and not seen answered."""
    with gateway_admin(own_stack.settings) as admin:
        return admin.sum(rf"^cluster\.{cluster}\.upstream_rq_active$")


@torchserve_only("Triton keeps no version without a worker")
def test_what_one_instance_has_no_worker_for_is_answered_by_the_other(
    own_stack: RunningStack,
) -> None:
    """TorchServe says 503 to it."""
    assert _scale_first(own_stack, 0)
    request_ids = [f"no-worker-{number}" for number in range(20)]
    answers = [_ask(own_stack, MODEL, each) for each in request_ids]
    assert {(answer.status_code, answer.json()["version"]) for answer in answers} == {(200, 2)}
    _assert_answered_by_the_other(own_stack, request_ids)
    # The tests that follow ask both instances. A tick may be about to load the version anew.
    wait_until(lambda: _scale_first(own_stack, 1), timeout_s=60.0)
    wait_until(lambda: _first_answers(own_stack), timeout_s=60.0)


def _scale_first(own_stack: RunningStack, workers: int) -> bool:
    """Give version 2 so many workers on the first instance; return whether it is there."""
    endpoint = endpoints(own_stack.settings)[0]
    response = httpx.put(
        f"http://{endpoint.host}:{endpoint.management_port}/models/{MODEL}/2",
        params={"min_worker": workers, "max_worker": workers, "synchronous": "true"},
        headers=_token(endpoint, "management"),
        timeout=60.0,
        trust_env=False,
    )
    return response.is_success


def _first_answers(own_stack: RunningStack) -> bool:
    """Whether the first instance answers for version 2 itself."""
    endpoint = endpoints(own_stack.settings)[0]
    answer = httpx.post(
        f"http://{endpoint.host}:{endpoint.inference_port}/predictions/{MODEL}/2",
        json=QUESTION,
        headers=_token(endpoint, "inference"),
        timeout=60.0,
        trust_env=False,
    )
    return answer.is_success


def _token(endpoint: Endpoint, purpose: str) -> Mapping[str, str]:
    tokens = json.loads(endpoint.key_file.read_text(encoding="utf-8"))
    return {"Authorization": f"Bearer {tokens[purpose]['key']}"}


def test_what_the_client_did_wrong_is_tried_once(own_stack: RunningStack) -> None:
    url = own_stack.settings.gateway_url
    bad_bodies = {
        "unreadable": {"image": "bm8gaW1hZ2U=", "text": "cat"},
        "no-image": {"text": "cat"},
    }
    for request_id, body in bad_bodies.items():
        headers = {"X-Request-Id": request_id}
        path = f"{url}/predictions/{MODEL}"
        response = httpx.post(path, json=body, headers=headers, trust_env=False)
        assert 400 <= response.status_code < 500, response.text
    assert {line["tries"] for line in _logged(own_stack, list(bad_bodies))} == {1}


def test_the_gateway_asks_engines_for_predictions_alone(own_stack: RunningStack) -> None:
    """So nothing but a prediction can be tried again."""
    url = own_stack.settings.gateway_url
    paths = ["models", f"models/{MODEL}", "workflows", f"explanations/{MODEL}", "metrics"]
    requests = [(method, path) for path in paths for method in ("GET", "POST", "PUT", "DELETE")]
    requests += [("DELETE", f"predictions/{MODEL}"), ("PATCH", f"predictions/{MODEL}/2")]
    for number, (method, path) in enumerate(requests):
        headers = {"X-Request-Id": f"no-prediction-{number}"}
        response = httpx.request(method, f"{url}/{path}", headers=headers, trust_env=False)
        assert response.status_code in (404, 405, 501), (method, path)
    lines = _logged(own_stack, [f"no-prediction-{number}" for number in range(len(requests))])
    assert {(line["upstream"], line["tries"]) for line in lines} == {(None, 0)}
