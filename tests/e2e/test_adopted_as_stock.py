"""Adopted archives beside a stock TorchServe that serves them as they are: byte for byte."""

import json
from collections.abc import Iterator

import httpx
import pytest

from support.legacy_exchanges import CALLS, Call, legacy_archives
from support.stock_torchserve import stock_torchserve
from vlserve.adopt.adoption import Wishes, adopt
from vlserve.testing import RunningStack

pytestmark = [pytest.mark.export, pytest.mark.long, pytest.mark.on_triton(tier="long")]

Answer = tuple[int, bytes, dict[str, str]]

OF_THE_SERVER = frozenset(
    {
        *("x-request-id", "pragma", "cache-control", "expires", "date", "server"),
        *("content-length", "connection", "transfer-encoding", "server-timing"),
        "x-model-version",
    }
)


@pytest.fixture(scope="module")
def stock_answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """What a stock TorchServe answers to each call."""
    folder = tmp_path_factory.mktemp("stock")
    with stock_torchserve(folder, legacy_archives(folder / "archives")) as http:
        return [_answer(http, call) for call in CALLS]


@pytest.fixture(scope="module")
def ours(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The gateway, with every archive adopted and released."""
    folder = tmp_path_factory.mktemp("adopted-as-stock")
    for name, archive in legacy_archives(folder).items():
        probe = folder / f"{name}.json"
        body = {"Scores": "[1.0, 2.0, 3.0]", "Results": '"str"'}.get(name, '{"a": 1}')
        probe.write_text(body, encoding="utf-8")
        model = f"stock-{name.lower()}"
        adoption = adopt(archive, folder, Wishes(requests=probe, name=model))
        stack.control.register(adoption.archive)
        stack.control.release(model, 1)
    yield stack.http


def _answer(http: httpx.Client, call: Call, name: str = "") -> Answer:
    path = f"/predictions/{name or call.model}{call.tail}"
    answer = http.post(path, content=call.body, headers=call.all_headers)
    said = {key: value for key, value in answer.headers.items() if key not in OF_THE_SERVER}
    return answer.status_code, answer.content, said


@pytest.mark.parametrize("place", range(len(CALLS)), ids=lambda place: CALLS[place].id)
def test_it_answers_as_stock(ours: httpx.Client, stock_answers: list[Answer], place: int) -> None:
    call, expected = CALLS[place], stock_answers[place]

    got = _answer(ours, call, f"stock-{call.model.lower()}")

    assert got[0] == expected[0]
    if got[0] >= 500:
        assert _without_ours(got[1]) == json.loads(expected[1])
    else:
        assert got[1:] == expected[1:]


def _without_ours(body: bytes) -> dict[str, object]:
    said: dict[str, object] = json.loads(body)
    assert said.pop("error")
    return said
