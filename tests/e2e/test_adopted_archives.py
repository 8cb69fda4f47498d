"""Archives of torch-model-archiver, adopted and served."""

from pathlib import Path

import grpc
import httpx
import pytest

from support.engines import on_triton, torchserve_only
from support.grpc_calls import calls_to
from support.legacy_archives import ENTRY_FUNCTION, write_legacy
from support.legacy_exchanges import END, FORM, Call, legacy_archives, part
from support.running_stack import wait_until
from vlserve.adopt.adoption import Adoption, Wishes, adopt
from vlserve.control.engine.endpoints import endpoints
from vlserve.errors import LoadFailed
from vlserve.loadgen.exchange_requests import adopted_archive
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.testing import RunningStack, pack_echo

pytestmark = [pytest.mark.export, on_triton]


@pytest.fixture(scope="module")
def adopted(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adoption]:
    """Archives adopted, registered and released, by their former names."""
    folder = tmp_path_factory.mktemp("adopted")
    archives, adoptions = legacy_archives(folder), {}
    for name in ("Echoes", "Entry", "Misbehaves", "Results", "Scores"):
        archive = archives[name]
        adoptions[name] = adoption = adopt(archive, folder, Wishes(requests=_probe(folder, name)))
        stack.control.register(adoption.archive)
        stack.control.release(adoption.model, adoption.version)
    return adoptions


def _probe(folder: Path, name: str) -> Path:
    probes = folder / f"probes-{name}"
    probes.mkdir()
    body = {"Scores": "[1.0, 2.0, 3.0]", "Results": '"str"'}.get(name, '{"a": 1}')
    (probes / "one.json").write_text(body, encoding="utf-8")
    return probes


def _ask(http: httpx.Client, call: Call) -> httpx.Response:
    return http.post(
        f"/predictions/{call.model}{call.tail}", content=call.body, headers=call.all_headers
    )


def test_an_answer_is_what_the_handler_returned(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    answer = _ask(stack.http, Call("Misbehaves", b"hello", "text/plain"))

    assert (answer.status_code, answer.content) == (200, b"said hello")
    assert "content-type" not in answer.headers
    assert answer.headers["x-model-version"] == "1"


def test_a_grpc_call_is_refused(stack: RunningStack, adopted: dict[str, Adoption]) -> None:
    """A handler's answer is no message."""
    with calls_to(stack.settings.gateway.port) as calls:
        said = calls.infer(adopted["Echoes"].model, b"hello")
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "POST /predictions/" in said.details


def test_statuses_headers_and_types_are_the_handlers(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    teapot = _ask(stack.http, Call("Misbehaves", b"teapot", "text/plain"))
    typed = _ask(stack.http, Call("Misbehaves", b"typed", "text/plain"))
    failed = _ask(stack.http, Call("Misbehaves", b"raise", "text/plain"))

    assert (teapot.status_code, teapot.content) == (418, b"said teapot")
    assert teapot.headers["x-kind"] == "teapot"
    assert typed.headers["content-type"] == "application/x-words"
    assert failed.status_code == 503
    assert failed.json()["message"] == "Prediction failed"
    assert failed.json()["error"]["code"] == "prediction_failed"


@pytest.mark.parametrize(
    ("word", "content"),
    [("bytes", b"\x00\xff"), ("nan", b"NaN"), ("empty", b""), ("str", "é".encode())],
)
def test_any_bytes_are_an_answer(
    stack: RunningStack, adopted: dict[str, Adoption], word: str, content: bytes
) -> None:
    answer = _ask(stack.http, Call("Results", f'"{word}"'.encode(), "application/json"))

    assert (answer.status_code, answer.content) == (200, content)


def test_the_clients_headers_and_path_reach_the_handler(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    headers = {"X-Team": "blue, é".encode(), "X-Api-Key": b"k", "Content-Type": b"application/json"}

    answer = stack.http.post("/predictions/Echoes/1.0/a/b", content=b"[1]", headers=headers)

    seen = answer.json()
    assert seen["any_case"] == "blue, é".encode().decode("latin-1")
    assert seen["headers"]["url_path"] == "a/b"
    assert seen["headers"]["explain"] == "False"
    assert seen["headers"]["content-type"] == "application/json"
    assert not any(name.startswith(("x-vlserve", "x-envoy")) for name in seen["headers"])
    assert "x-api-key" not in seen["headers"]
    assert "authorization" not in seen["headers"]


def test_a_form_is_decoded_part_by_part(stack: RunningStack, adopted: dict[str, Adoption]) -> None:
    form = part("data", b"[1]", "application/json", "a.json") + part("t", b"0.5") + END

    seen = _ask(stack.http, Call("Echoes", form, FORM)).json()

    assert seen["data"] == {"data": ["list", [1]], "t": ["bytearray", b"0.5".hex()]}


@pytest.mark.parametrize("path", ["Entry", "Entry/1.0", "entry", "entry/1", "entry/1.0"])
def test_former_and_new_names_are_routes(
    stack: RunningStack, adopted: dict[str, Adoption], path: str
) -> None:
    answer = stack.http.post(f"/predictions/{path}", content=b"x")

    assert (answer.status_code, answer.text) == (200, "bytearray: bytearray(b'x')")


def test_a_version_that_the_model_never_had_is_not_found(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    assert stack.http.post("/predictions/Entry/2.0", content=b"x").status_code == 404


def test_torchscript_and_labels_of_base_handler(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    asked = Call("Scores", b"[0.1, 0.2, 0.3]", "application/json")
    scores = _ask(stack.http, asked).json()

    assert scores.keys() == {"cat", "dog"}
    assert sum(scores.values()) == pytest.approx(1.0)


def test_a_word_that_ends_its_worker_harms_no_other(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    ended = _ask(stack.http, Call("Misbehaves", b"leave", "text/plain"))
    after = _ask(stack.http, Call("Misbehaves", b"hello", "text/plain"))

    assert ended.status_code >= 500
    assert after.content == b"said hello"


def test_adopted_and_native_versions_share_a_model_and_go_back(
    stack: RunningStack, adopted: dict[str, Adoption], new_model: str, tmp_path: Path
) -> None:
    legacy = write_legacy(tmp_path / "Shared.mar", "score:run", ENTRY_FUNCTION, modelName="Shared")
    adoption = adopt(legacy, tmp_path, Wishes(name=new_model))
    stack.control.register(adoption.archive)
    stack.control.release(new_model, 1)
    stack.control.register(pack_echo(tmp_path, new_model, 2))
    stack.control.release(new_model, 2)

    assert stack.http.post("/predictions/Shared", content=b"x").headers["x-model-version"] == "2"
    assert stack.control.rollback(new_model).version == 1
    assert stack.http.post("/predictions/Shared", content=b"x").text.startswith("bytearray")


def test_an_archive_that_answers_otherwise_than_recorded_is_not_loaded(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    source = "import os\n\ndef handle(data, context):\n    return data and [sorted(os.environ)]\n"
    legacy = write_legacy(tmp_path / "Env.mar", "env.py", source, modelName="Env")
    adoption = adopt(legacy, tmp_path, Wishes(name=new_model))

    with pytest.raises(LoadFailed, match="text is"):
        stack.control.register(adoption.archive)


def test_stress_sends_a_models_probes_and_takes_any_answer(
    stack: RunningStack, adopted: dict[str, Adoption], tmp_path: Path
) -> None:
    archive = adopted_archive(stack.settings.model_store, "entry")
    plan = StressPlan(
        url=stack.gateway_url,
        model="entry",
        archive=archive,
        users=2,
        duration_s=2,
        warm_up_s=1,
        max_p99_ms=60_000.0,
    )

    result = run_stress(plan, tmp_path)

    assert result.breaches == (), result.figures.failures
    assert result.figures.requests > 0
    assert set(result.figures.versions) == {1}


@torchserve_only("Triton has no metrics of a handler's own")
def test_what_a_handler_counts_is_in_the_engines_metrics(
    stack: RunningStack, adopted: dict[str, Adoption]
) -> None:
    _ask(stack.http, Call("Misbehaves", b"hello", "text/plain"))
    port = endpoints(stack.settings)[0].metrics_port

    def counted() -> bool:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return all(name in page for name in ("words_seen", "bytes_seen", "share_seen"))

    wait_until(counted)
