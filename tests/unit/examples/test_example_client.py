"""examples/client.py against replies that a test gives: what it sends, and when it tries again."""

import importlib.util
from pathlib import Path
from types import ModuleType

import httpx
import pytest

FILE = Path(__file__).parents[3] / "examples" / "client.py"
OVERLOADED = {"error": {"code": "overloaded", "message": "the version's queue is full"}}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_client", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Gateway:
    """Answers with one reply after the other, and keeps the requests."""

    def __init__(self, *replies: httpx.Response) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.replies.pop(0)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(self))


def busy() -> httpx.Response:
    return httpx.Response(503, json=OVERLOADED, headers={"Retry-After": "0"})


def test_it_sends_a_form_and_returns_the_answer(example: ModuleType, tmp_path: Path) -> None:
    image = tmp_path / "cover.jpg"
    image.write_bytes(b"pixels")
    gateway = Gateway(httpx.Response(200, json={"model": "tagger", "tags": []}))
    with gateway.client() as client:
        answer = example.predict(client, "tagger", {"text": "零基础"}, {"image": image}, "u-7")
    assert answer == {"model": "tagger", "tags": []}
    (request,) = gateway.requests
    assert request.url.path == "/predictions/tagger"
    assert request.headers["X-Sticky-Key"] == "u-7"
    assert request.headers["content-type"].startswith("multipart/form-data")
    assert b"pixels" in request.content
    assert "零基础".encode() in request.content


def test_it_tries_again_after_503_alone(example: ModuleType) -> None:
    gateway = Gateway(busy(), httpx.Response(200, json={"model": "tagger"}))
    with gateway.client() as client:
        assert example.predict(client, "tagger", {"text": "x"}, {}) == {"model": "tagger"}
    assert len(gateway.requests) == 2
    wrong = {"error": {"code": "field_invalid", "message": "text is missing"}}
    gateway = Gateway(httpx.Response(422, json=wrong))
    with gateway.client() as client, pytest.raises(example.Refused, match="text is missing"):
        example.predict(client, "tagger", {}, {})


def test_it_gives_up_after_three_tries(example: ModuleType) -> None:
    gateway = Gateway(*[busy() for _ in range(3)])
    with gateway.client() as client, pytest.raises(example.Refused) as error:
        example.predict(client, "tagger", {"text": "x"}, {})
    assert (error.value.status, error.value.code) == (503, "overloaded")
