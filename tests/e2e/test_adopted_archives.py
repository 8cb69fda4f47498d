"""Archives of torch-model-archiver, adopted and served; test_adopted_forms.py has more of them."""

import grpc
import httpx
import pytest

from support.adopted_models import AdoptedModels
from support.engines import on_triton, torchserve_only
from support.grpc_calls import calls_to
from support.legacy_exchanges import END, FORM, Call, part
from support.running_stack import wait_until
from vlserve.control.engine.endpoints import endpoints
from vlserve.testing import RunningStack

pytestmark = [pytest.mark.export, on_triton]


def test_an_answer_is_what_the_handler_returned(adopted: AdoptedModels) -> None:
    answer = adopted.ask(Call("Misbehaves", b"hello", "text/plain"))

    assert (answer.status_code, answer.content) == (200, b"said hello")
    assert "content-type" not in answer.headers
    assert answer.headers["x-model-version"] == "1"


def test_a_grpc_call_is_refused(stack: RunningStack, adopted: AdoptedModels) -> None:
    """A handler's answer is no message."""
    with calls_to(stack.settings.gateway.port) as calls:
        said = calls.infer(adopted["Echoes"].model, b"hello")
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "POST /predictions/" in said.details


def test_statuses_headers_and_types_are_the_handlers(adopted: AdoptedModels) -> None:
    teapot = adopted.ask(Call("Misbehaves", b"teapot", "text/plain"))
    typed = adopted.ask(Call("Misbehaves", b"typed", "text/plain"))
    failed = adopted.ask(Call("Misbehaves", b"raise", "text/plain"))

    assert (teapot.status_code, teapot.content) == (418, b"said teapot")
    assert teapot.headers["x-kind"] == "teapot"
    assert typed.headers["content-type"] == "application/x-words"
    assert failed.status_code == 503
    assert failed.json()["message"] == "Prediction failed"
    assert failed.json()["error"]["code"] == "prediction_failed"


def test_an_error_of_the_handlers_own_stays_as_it_is(adopted: AdoptedModels) -> None:
    """Though it has the form of one of ours."""
    answer = adopted.ask(Call("Misbehaves", b"our words", "text/plain"))

    assert answer.status_code == 422
    assert answer.json() == {"error": {"code": "own", "message": "as a gateway says it"}}


def test_the_clients_headers_and_path_reach_the_handler(
    stack: RunningStack, adopted: AdoptedModels
) -> None:
    headers = {"X-Team": "blue, é".encode(), "X-Api-Key": b"k", "Content-Type": b"application/json"}
    model = adopted["Echoes"].model

    answer = stack.http.post(f"/predictions/{model}/1.0/a/b", content=b"[1]", headers=headers)

    seen = answer.json()
    assert seen["any_case"] == "blue, é".encode().decode("latin-1")
    assert seen["headers"]["url_path"] == "a/b"
    assert seen["headers"]["explain"] == "False"
    assert seen["headers"]["content-type"] == "application/json"
    assert not any(name.startswith(("x-vlserve", "x-envoy")) for name in seen["headers"])
    assert "x-api-key" not in seen["headers"]
    assert "authorization" not in seen["headers"]


def test_a_form_is_decoded_part_by_part(adopted: AdoptedModels) -> None:
    form = part("data", b"[1]", "application/json", "a.json") + part("t", b"0.5") + END

    seen = adopted.ask(Call("Echoes", form, FORM)).json()

    assert seen["data"] == {"data": ["list", [1]], "t": ["bytearray", b"0.5".hex()]}


@pytest.mark.parametrize(
    "path", ["Echoes", "Echoes/1.0", "moved-echoes", "moved-echoes/1", "moved-echoes/1.0"]
)
def test_former_and_new_names_are_routes(
    stack: RunningStack, adopted: AdoptedModels, path: str
) -> None:
    assert adopted["Echoes"].model == "moved-echoes"

    answer = stack.http.post(f"/predictions/{path}", content=b"x")

    assert answer.status_code == 200
    assert answer.json()["data"] == {"body": ["bytearray", b"x".hex()]}


def test_a_version_that_the_model_never_had_is_not_found(
    stack: RunningStack, adopted: AdoptedModels
) -> None:
    assert adopted["Echoes"]

    answer = stack.http.post("/predictions/Echoes/2.0", content=b"x")

    assert answer.status_code == 404
    assert answer.json()["type"] == "ModelVersionNotFoundException"
    assert answer.json()["error"]["code"] == "version_not_found"


def test_a_word_that_ends_its_worker_harms_no_other(adopted: AdoptedModels) -> None:
    ended = adopted.ask(Call("Misbehaves", b"leave", "text/plain"))
    after = adopted.ask(Call("Misbehaves", b"hello", "text/plain"))

    assert ended.status_code >= 500
    assert ended.json()["code"] == ended.status_code
    assert ended.json()["message"] == ended.json()["error"]["message"]
    assert after.content == b"said hello"


@torchserve_only("Triton has no metrics of a handler's own")
def test_what_a_handler_counts_is_in_the_engines_metrics(
    stack: RunningStack, adopted: AdoptedModels
) -> None:
    adopted.ask(Call("Misbehaves", b"hello", "text/plain"))
    port = endpoints(stack.settings)[0].metrics_port

    def counted() -> bool:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return all(name in page for name in ("words_seen", "bytes_seen", "share_seen"))

    wait_until(counted)
