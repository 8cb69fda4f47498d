"""Requests that kill their worker are found and refused; the others are answered."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.request_bodies import JPEG
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.testing import RunningStack

POISON = "慢"
MODEL = "poisoned"
CLIENTS = 16


@pytest.fixture(scope="module")
def served(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> RunningStack:
    folder = tmp_path_factory.mktemp("poisoned")
    archive = pack_echo(folder, MODEL, 1, crash_on_id=VOCABULARY[POISON], delay_ms=20)
    stack.control.register(archive)
    stack.control.release(MODEL, 1)
    return stack


def ask(served: RunningStack, text: str) -> httpx.Response:
    return served.http.post(f"/predictions/{MODEL}", files={"image": JPEG}, data={"text": text})


def test_fifteen_kill_nobody_s_answer(served: RunningStack) -> None:
    """Each kills two workers, the second while it runs alone; whoever shared a batch with it is
    sent again by the gateway."""
    poison = [f"{POISON} {number}" for number in range(15)]
    neighbours = [f"cat {number}" for number in range(400)]
    texts = [*poison, *neighbours]
    random.Random(0).shuffle(texts)
    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = dict(zip(texts, pool.map(lambda text: ask(served, text), texts), strict=True))
    assert Counter(replies[text].status_code for text in neighbours) == {200: 400}
    refusals = [replies[text] for text in poison]
    said = Counter((reply.status_code, reply.json()["error"]["code"]) for reply in refusals)
    assert said == {(500, "request_killed_worker"): 15}
    assert len({reply.json()["request_id"] for reply in refusals}) == 15


def test_it_is_refused_at_once_afterwards(served: RunningStack) -> None:
    for _ in range(3):
        reply = ask(served, f"{POISON} 0")
        assert (reply.status_code, reply.headers["x-model-version"]) == (500, "1")
        assert "refused for 600 s" in reply.json()["error"]["message"]
    assert ask(served, "cat 0").status_code == 200
