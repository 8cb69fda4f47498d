"""Bad requests of every kind beside good ones, in the same batches of a real TorchServe: each bad
one gets its own refusal, each good one the answer that it gets alone, and no process dies."""

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

import pytest

from support import bad_images, bad_requests
from support.engine_workers import worker_pids
from support.good_requests import good_requests, oddly_wrapped
from support.raw_http import Case, Reply, encode, send
from support.request_bodies import as_form, as_json
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.stack import stack as control_stack
from vlserve.testing import RunningStack

MODEL = "bad-requests"
CLIENTS = 24

BAD = [
    *bad_images.truncated(),
    *bad_images.too_many_pixels(),
    *bad_images.no_image(),
    *bad_images.bad_base64(),
    *bad_requests.bad_texts(),
    *bad_requests.bad_values(),
    *bad_requests.bad_fields(),
    *bad_requests.bad_json(),
    *bad_requests.bad_forms(),
    *bad_requests.bad_content_types(),
    *bad_requests.unknown_names(),
    *bad_requests.bad_http(),
]
GOOD = [*good_requests(), *oddly_wrapped()]
FAILING = [
    as_form("graph-fails", 500, "inference_failed", text="坏".encode()),
    as_json("graph-fails-in-json", 500, "inference_failed", text="可爱坏"),
]
"""The graph itself raises on these: no fault of the client's, and none of its neighbours'."""


@dataclass(frozen=True)
class Exchange:
    case: Case
    request_id: str
    reply: Reply

    @property
    def said(self) -> dict[str, Any]:
        body = json.loads(self.reply.body)
        assert isinstance(body, dict)
        return body


@dataclass(frozen=True)
class Mixed:
    """What was said to everybody when all asked at once, and the answers given to each alone."""

    exchanges: Sequence[Exchange]
    alone: Mapping[str, Exchange]
    processes: tuple[Mapping[str, int | None], Mapping[str, int | None]]
    workers: tuple[Mapping[int, list[int]], Mapping[int, list[int]]]

    def of(self, case: Case) -> list[Exchange]:
        return [each for each in self.exchanges if each.case == case]


@pytest.fixture(scope="module")
def serving_stack(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> RunningStack:
    """Version 1 has all traffic; slow enough for a queue, so that requests meet in batches."""
    folder = tmp_path_factory.mktemp("bad-requests")
    faults = {"delay_ms": 30, "fail_on_id": VOCABULARY["坏"]}
    stack.control.register(pack_echo(folder, MODEL, 1, **faults))
    stack.control.release(MODEL, 1)
    return stack


@pytest.fixture(scope="module")
def mix(serving_stack: RunningStack) -> Mixed:
    def ask(case: Case, number: int) -> Exchange:
        request_id = f"bad-requests-{number}"
        raw = encode(case, MODEL, request_id)
        return Exchange(
            case, request_id, send(serving_stack.settings.gateway.port, raw, case.method)
        )

    def processes() -> dict[str, int | None]:
        return {each.name: each.pid for each in control_stack.status(serving_stack.settings)}

    alone = {case.name: ask(case, number) for number, case in enumerate(GOOD)}
    before = processes(), worker_pids(serving_stack.settings, MODEL)
    together = [*BAD, *FAILING * 10, *(case for _, case in zip(BAD, cycle(GOOD), strict=False))]
    random.Random(0).shuffle(together)
    with ThreadPoolExecutor(CLIENTS) as pool:
        exchanges = list(pool.map(ask, together, range(1000, 1000 + len(together))))
    after = processes(), worker_pids(serving_stack.settings, MODEL)
    return Mixed(exchanges, alone, (before[0], after[0]), (before[1], after[1]))


def _check_refusal(case: Case, exchange: Exchange) -> None:
    error = exchange.said["error"]
    assert (exchange.reply.status, error["code"]) == (case.status, case.code), error
    assert exchange.reply.headers["content-type"] == "application/json"
    assert error["message"]
    if not case.raw:
        assert exchange.reply.headers["x-request-id"] == exchange.request_id


def test_there_are_hundreds_and_no_two_of_a_name() -> None:
    names = [case.name for case in chain(BAD, GOOD, FAILING)]
    assert len(names) == len(set(names))
    assert len(BAD) >= 200
    assert all(400 <= case.status < 500 or case.status == 501 for case in BAD)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_request_gets_its_own_refusal(mix: Mixed, case: Case) -> None:
    (exchange,) = mix.of(case)
    _check_refusal(case, exchange)


@pytest.mark.parametrize("case", FAILING, ids=lambda case: case.name)
def test_what_the_graph_fails_on_fails_alone(mix: Mixed, case: Case) -> None:
    for exchange in mix.of(case):
        _check_refusal(case, exchange)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_a_good_neighbour_is_answered_as_if_it_were_alone(mix: Mixed, case: Case) -> None:
    expected = _scores(mix.alone[case.name])
    exchanges = mix.of(case)
    assert exchanges
    for exchange in exchanges:
        body = exchange.said
        assert (body["model"], body["version"]) == (MODEL, 1)
        assert body["request_id"] == exchange.reply.headers["x-request-id"] == exchange.request_id
        assert list(_scores(exchange)) == list(expected)
        assert _scores(exchange) == pytest.approx(expected, abs=1e-6)


def _scores(exchange: Exchange) -> dict[str, float]:
    assert exchange.reply.status == 200, exchange.reply
    return {entry["tag"]: entry["score"] for entry in exchange.said["tags"]}


def test_answers_differ_as_their_inputs_do(mix: Mixed) -> None:
    """So that an answer meant for a neighbour is noticed; wrapping alone makes no difference."""
    answers = [tuple(_scores(mix.alone[case.name]).items()) for case in good_requests()]
    assert len(set(answers)) > len(answers) / 2
    assert len({tuple(_scores(mix.alone[case.name]).items()) for case in oddly_wrapped()}) == 1


def test_they_met_in_the_same_batches(mix: Mixed) -> None:
    """By the times that each answer tells of its batch, to the microsecond."""
    batches: dict[str, set[int]] = {}
    for exchange in mix.exchanges:
        timing = exchange.reply.headers.get("server-timing", "")
        if timing.startswith("decode"):
            batches.setdefault(timing.partition("engine")[0], set()).add(exchange.reply.status)
    assert len([statuses for statuses in batches.values() if {200} < statuses]) > 10
    assert any({200, 500} <= statuses for statuses in batches.values())


def test_what_is_too_large_is_told_so(serving_stack: RunningStack) -> None:
    for case in bad_requests.too_large():
        raw = encode(case, MODEL, case.name)
        reply = send(serving_stack.settings.gateway.port, raw, case.method)
        _check_refusal(case, Exchange(case, case.name, reply))


def test_no_process_died(serving_stack: RunningStack, mix: Mixed) -> None:
    before, after = mix.processes
    assert before == after
    assert len(mix.workers[0][1]) == serving_stack.settings.engine.workers
    assert mix.workers[0] == mix.workers[1] == worker_pids(serving_stack.settings, MODEL)
