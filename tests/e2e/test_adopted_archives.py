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


def test_an_answer_is_what_the_handler_returned(adopted_models: AdoptedModels) -> None:
    answer = adopted_models.ask(Call("Misbehaves", b"hello", "text/plain"))

    assert (answer.status_code, answer.content) == (200, b"said hello")
    assert "content-type" not in answer.headers
    assert answer.headers["x-model-version"] == "1"


def test_a_grpc_call_is_refused(stack: RunningStack, adopted_models: AdoptedModels) -> None:
    """A handler's answer is no message."""
    with calls_to(stack.settings.gateway.port) as calls:
        result = calls.infer(adopted_models["Echoes"].model, b"hello")
    assert result.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "POST /predictions/" in result.details


def test_statuses_headers_and_types_are_the_handlers(adopted_models: AdoptedModels) -> None:
    teapot = adopted_models.ask(Call("Misbehaves", b"teapot", "text/plain"))
    typed_answer = adopted_models.ask(Call("Misbehaves", b"typed", "text/plain"))
    failure = adopted_models.ask(Call("Misbehaves", b"raise", "text/plain"))

    assert (teapot.status_code, teapot.content) == (418, b"said teapot")
    assert teapot.headers["x-kind"] == "teapot"
    assert typed_answer.headers["content-type"] == "application/x-words"
    assert failure.status_code == 503
    assert failure.json()["message"] == "Prediction failed"
    assert failure.json()["error"]["code"] == "prediction_failed"


def test_an_error_of_the_handlers_own_stays_as_it_is(adopted_models: AdoptedModels) -> None:
    """Though it has the form of one of ours."""
    answer = adopted_models.ask(Call("Misbehaves", b"our words", "text/plain"))

    assert answer.status_code == 422
    assert answer.json() == {"error": {"code": "own", "message": "as a gateway says it"}}


def test_the_clients_headers_and_path_reach_the_handler(
    stack: RunningStack, adopted_models: AdoptedModels
) -> None:
    headers = {"X-Team": "blue, é".encode(), "X-Api-Key": b"k", "Content-Type": b"application/json"}
    model = adopted_models["Echoes"].model

    answer = stack.http.post(f"/predictions/{model}/1.0/a/b", content=b"[1]", headers=headers)

    echo = answer.json()
    assert echo["any_case"] == "blue, é".encode().decode("latin-1")
    assert echo["headers"]["url_path"] == "a/b"
    assert echo["headers"]["explain"] == "False"
    assert echo["headers"]["content-type"] == "application/json"
    assert not any(name.startswith(("x-vlserve", "x-envoy")) for name in echo["headers"])
    assert "x-api-key" not in echo["headers"]
    assert "authorization" not in echo["headers"]


def test_a_form_is_decoded_part_by_part(adopted_models: AdoptedModels) -> None:
    form = part("data", b"[1]", "application/json", "a.json") + part("t", b"0.5") + END

    echo = adopted_models.ask(Call("Echoes", form, FORM)).json()

    assert echo["data"] == {"data": ["list", [1]], "t": ["bytearray", b"0.5".hex()]}


@pytest.mark.parametrize(
    "path", ["Echoes", "Echoes/1.0", "moved-echoes", "moved-echoes/1", "moved-echoes/1.0"]
)
def test_former_and_new_names_are_routes(
    stack: RunningStack, adopted_models: AdoptedModels, path: str
) -> None:
    assert adopted_models["Echoes"].model == "moved-echoes"

    answer = stack.http.post(f"/predictions/{path}", content=b"x")

    assert answer.status_code == 200
    assert answer.json()["data"] == {"body": ["bytearray", b"x".hex()]}


def test_a_version_that_the_model_never_had_is_not_found(
    stack: RunningStack, adopted_models: AdoptedModels
) -> None:
    assert adopted_models["Echoes"]

    answer = stack.http.post("/predictions/Echoes/2.0", content=b"x")

    assert answer.status_code == 404
    assert answer.json()["type"] == "ModelVersionNotFoundException"
    assert answer.json()["error"]["code"] == "version_not_found"


def test_a_word_that_ends_its_worker_harms_no_other(adopted_models: AdoptedModels) -> None:
    failure = adopted_models.ask(Call("Misbehaves", b"leave", "text/plain"))
    after = adopted_models.ask(Call("Misbehaves", b"hello", "text/plain"))

    assert failure.status_code >= 500
    assert failure.json()["code"] == failure.status_code
    assert failure.json()["message"] == failure.json()["error"]["message"]
    assert after.content == b"said hello"


@torchserve_only("Triton has no metrics of a handler's own")
def test_what_a_handler_counts_is_in_the_engines_metrics(
    stack: RunningStack, adopted_models: AdoptedModels
) -> None:
    adopted_models.ask(Call("Misbehaves", b"hello", "text/plain"))
    port = endpoints(stack.settings)[0].metrics_port

    def is_counted() -> bool:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return all(name in page for name in ("words_seen", "bytes_seen", "share_seen"))

    wait_until(is_counted)
