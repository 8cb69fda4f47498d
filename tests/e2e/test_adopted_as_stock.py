"""Adopted archives beside a stock TorchServe that serves them as they are: byte for byte."""

import json
from collections.abc import Collection
from dataclasses import dataclass

import httpx
import pytest

from support.adopted_models import AdoptedModels
from support.legacy_exchanges import CALLS, ENVELOPES, Call, legacy_archives
from support.stock_torchserve import stock_torchserve
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


DESCRIBED = ("Describes", "Scores")


@dataclass(frozen=True)
class Stock:
    """What a stock TorchServe says: to each call, and of some models (name -> their metadata)."""

    answers: list[Answer]
    metadata: dict[str, object]


@pytest.fixture(scope="session")  # the module's tests run once for each engine
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """What a stock TorchServe says of the archives as they are."""
    folder = tmp_path_factory.mktemp("stock")
    archives = legacy_archives(folder / "archives")
    answers: dict[int, Answer] = {}
    for name, envelope in ENVELOPES.items():  # of a whole server
        archive, line = {name: archives.pop(name)}, f"service_envelope={envelope}"
        with stock_torchserve(folder / name, archive, line) as http:
            answers |= _answers(http, archive)
    with stock_torchserve(folder / "others", archives) as http:
        answers |= _answers(http, archives)
        management = http.base_url.copy_with(port=(http.base_url.port or 0) + 1)
        metadata = {name: _metadata(http, f"{management}/models/{name}") for name in DESCRIBED}
    return Stock([answer for _, answer in sorted(answers.items())], metadata)


def _answers(http: httpx.Client, models: Collection[str]) -> dict[int, Answer]:
    """Return the answers to the calls to these models, by their places among all."""
    return {at: _answer(http, call) for at, call in enumerate(CALLS) if call.model in models}


def _answer(http: httpx.Client, call: Call, name: str = "") -> Answer:
    path = f"/predictions/{name or call.model}{call.tail}"
    answer = http.post(path, content=call.body, headers=call.all_headers)
    headers = {key: value for key, value in answer.headers.items() if key not in OF_THE_SERVER}
    return answer.status_code, answer.content, headers


@pytest.mark.parametrize("place", range(len(CALLS)), ids=lambda place: CALLS[place].id)
def test_it_answers_as_stock(
    stack: RunningStack, adopted_models: AdoptedModels, stock: Stock, place: int
) -> None:
    call, expected = CALLS[place], stock.answers[place]

    answer = _answer(stack.http, call, adopted_models[call.model].model)

    assert answer[0] == expected[0]
    if answer[0] >= 500:
        assert _without_ours(answer[1]) == json.loads(expected[1])
    else:
        assert answer[1:] == expected[1:]


def _without_ours(body: bytes) -> dict[str, object]:
    fields: dict[str, object] = json.loads(body)
    assert fields.pop("error")
    return fields


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_handler_describes_itself_as_in_stock(
    stack: RunningStack, adopted_models: AdoptedModels, stock: Stock, name: str
) -> None:
    key = stack.settings.control_key_file.read_text(encoding="utf-8").strip()
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        url = f"{stack.settings.control_url}/torchserve/models/{adopted_models[name].model}"
        assert _metadata(http, url) == stock.metadata[name]


def _metadata(http: httpx.Client, url: str) -> object:
    answer = http.get(url, params={"customized": "true"}, timeout=60.0)
    descriptions = answer.json()
    return descriptions[0].get("customizedMetadata") if isinstance(descriptions, list) else None
