"""Requests that kill their worker are found and refused; the others are answered."""

import base64
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.engines import on_triton
from support.request_bodies import JPEG
from support.running_stack import make_settings
from vlserve.control.domain import EngineKind
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.testing import RunningStack, running_stack

pytestmark = on_triton

POISON = "慢"
MODEL = "poisoned"
CLIENTS = 16
POISONS = 15
PATIENCE_S = 400.0
"""Thirty workers die one after the other, and a busy machine takes its time to replace them."""


@pytest.fixture(scope="module")
def own_stack(
    engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    with serving(tmp_path_factory.mktemp("poisoned"), engine_kind) as stack:
        yield stack


@contextmanager
def serving(folder: Path, kind: EngineKind, **gateway: Any) -> Iterator[RunningStack]:
    archive = pack_echo(folder, MODEL, 1, crash_on_id=VOCABULARY[POISON], delay_ms=20)
    settings = make_settings(folder / "stack", kind, timeout_s=PATIENCE_S, **gateway)
    with running_stack(settings) as stack:
        stack.control.register(archive)
        stack.control.release(MODEL, 1)
        yield stack


def ask(own_stack: RunningStack, text: str) -> httpx.Response:
    url = f"{own_stack.gateway_url}/predictions/{MODEL}"
    files, data = {"image": JPEG}, {"text": text}
    return httpx.post(url, files=files, data=data, timeout=PATIENCE_S, trust_env=False)


def test_nobody_else_loses_an_answer(own_stack: RunningStack) -> None:
    _nobody_else_loses_an_answer(own_stack, poisons=2, neighbours=60)


@pytest.mark.long
@pytest.mark.timeout(900)  # fifteen workers start, some of them one after the other
def test_nor_does_anybody_among_many_that_kill(engine_kind: EngineKind, tmp_path: Path) -> None:
    """Whoever is in one batch after the other with a new one of them is sent again each time."""
    with serving(tmp_path, engine_kind, retries=POISONS) as stack:
        _nobody_else_loses_an_answer(stack, POISONS, neighbours=400)


def _nobody_else_loses_an_answer(own_stack: RunningStack, poisons: int, neighbours: int) -> None:
    """Each kills two workers, the second while it runs alone. Whoever shared a batch with it is
    sent again by the gateway, `gateway.retries` times at the most; a poison that meets more others
    than that is refused when it is asked again."""
    poison = [f"{POISON} {poisons} {number}" for number in range(poisons)]
    others = [f"cat {poisons} {number}" for number in range(neighbours)]
    texts = [*poison, *others]
    random.Random(0).shuffle(texts)
    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = dict(zip(texts, pool.map(lambda text: ask(own_stack, text), texts), strict=True))
    assert Counter(replies[text].status_code for text in others) == {200: neighbours}
    codes = {replies[text].json()["error"]["code"] for text in poison}
    assert "request_killed_worker" in codes
    assert codes <= {"request_killed_worker", "engine_failed"}
    for text in poison:
        refusal = ask(own_stack, text)
        assert refusal.status_code == 500
        assert refusal.json()["error"]["code"] == "request_killed_worker"


def test_it_is_refused_at_once_afterwards(own_stack: RunningStack) -> None:
    assert ask(own_stack, f"{POISON} again").status_code == 500
    for _ in range(3):
        reply = ask(own_stack, f"{POISON} again")
        assert (reply.status_code, reply.headers["x-model-version"]) == (500, "1")
        assert "refused for 600 s" in reply.json()["error"]["message"]
    assert ask(own_stack, "cat 0").status_code == 200


def test_an_item_that_kills_is_refused_and_its_neighbours_are_answered(
    own_stack: RunningStack,
) -> None:
    texts = ["a cat", f"{POISON} among items", "a dog"]
    columns = {"text": texts, "image": [base64.b64encode(JPEG).decode()] * len(texts)}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}
        for name, values in columns.items()
    ]

    def ask_v2(**parameters: bool) -> httpx.Response:
        url = f"{own_stack.gateway_url}/v2/models/{MODEL}/infer"
        body = {"inputs": inputs, "parameters": parameters}
        return httpx.post(url, json=body, timeout=PATIENCE_S, trust_env=False)

    assert ask_v2().status_code >= 500  # it may be refused only when it is asked again
    refusal = ask_v2()
    assert refusal.status_code == 500
    assert refusal.json()["error"].startswith("item 1: request_killed_worker: ")
    answer = ask_v2(partial=True)
    (errors,) = (each["data"] for each in answer.json()["outputs"] if each["name"] == "errors")
    assert [error.partition(":")[0] for error in errors] == ["", "request_killed_worker", ""]
