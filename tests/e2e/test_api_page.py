"""A request tried on the control service's API page: what a browser sends, and who else may not."""

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe
from support.running_stack import RunningGateway, running_gateway
from vlserve.control.domain import ModelRoute

PATH = "/predictions/page-model"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-api-key",
}


def origins(gateway: RunningGateway) -> list[str]:
    port = gateway.settings.control.port
    return [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]


def test_the_page_may_ask_and_read(
    envoy: RunningGateway, engines: tuple[FakeTorchServe, FakeTorchServe]
) -> None:
    envoy.route(ModelRoute("page-model", weights={1: 100}, versions=(1,)), to=[engines[0]])
    for origin in origins(envoy):
        preflight = envoy.http.options(PATH, headers=PREFLIGHT | {"Origin": origin})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "content-type" in preflight.headers["access-control-allow-headers"]
        answer = envoy.http.post(
            PATH,
            headers={"Origin": origin},
            data={"text": "cat"},
            files={"image": ("cover.jpg", b"\xff\xd8", "image/jpeg")},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == origin
        refusal = envoy.http.post("/predictions/nothing", headers={"Origin": origin})
        assert refusal.status_code == 404  # whose reason the page must be able to read
        assert refusal.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
     "http://127.0.0.1:{port}.evil.example", "http://evil.example:{port}"],
)  # fmt: skip
def test_no_other_page_may(envoy: RunningGateway, origin: str) -> None:
    headers = {"Origin": origin.format(port=envoy.settings.control.port)}
    preflight = envoy.http.options(PATH, headers=PREFLIGHT | headers)
    answer = envoy.http.post(PATH, headers=headers, data={"text": "cat"})
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control-")]
    assert preflight.status_code >= 400


def test_a_key_is_asked_of_the_request_and_not_of_the_browser_s_question(
    tmp_path_factory: pytest.TempPathFactory, engines: tuple[FakeTorchServe, FakeTorchServe]
) -> None:
    folder = tmp_path_factory.mktemp("keyed")
    with running_gateway(folder, api_keys=("the-key",)) as gateway:
        gateway.route(ModelRoute("page-model", weights={1: 100}, versions=(1,)), to=[engines[0]])
        headers = {"Origin": origins(gateway)[0]}
        preflight = gateway.http.options(PATH, headers=PREFLIGHT | headers)
        assert preflight.status_code == 204
        assert "x-api-key" in preflight.headers["access-control-allow-headers"]
        statuses = [
            gateway.http.post(PATH, headers=headers | key, data={"text": "cat"}).status_code
            for key in ({}, {"X-Api-Key": "wrong"}, {"X-Api-Key": "the-key"})
        ]
        assert statuses == [401, 401, 200]


def test_without_an_origin_nothing_changes(envoy: RunningGateway) -> None:
    answer = httpx.options(f"{envoy.settings.gateway_url}{PATH}", trust_env=False)
    assert answer.status_code in (200, 404)  # a description, where the model is served
    assert not [name for name in answer.headers if name.startswith("access-control-")]
