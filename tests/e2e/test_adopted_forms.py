"""More archives of torch-model-archiver, adopted and served: each takes seconds to load."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.adopted_models import AdoptedModels
from support.engines import on_triton
from support.legacy_archives import ENTRY_FUNCTION, FIRST_ALONE, MISBEHAVES, write_legacy
from support.legacy_exchanges import Call
from support.running_stack import wait_until
from vlserve.adopt.adoption import Wishes, adopt
from vlserve.control.client import ControlClient
from vlserve.errors import LoadFailed
from vlserve.loadgen.exchange_requests import adopted_archive
from vlserve.loadgen.stress_plan import StressPlan
from vlserve.loadgen.stress_run import run_stress
from vlserve.stack.containers import gateway_failures
from vlserve.testing import RunningStack, pack_echo

pytestmark = [pytest.mark.export, pytest.mark.long, on_triton(tier="long")]


ENDED = {(500, "request_killed_worker"), (503, "engine_failed"), (504, "deadline_exceeded")}
"""What a client is told whose request ends its worker, by which limit comes first."""


@pytest.mark.parametrize(
    ("word", "content"),
    [("bytes", b"\x00\xff"), ("nan", b"NaN"), ("empty", b""), ("str", "é".encode())],
)
def test_any_bytes_are_an_answer(adopted_models: AdoptedModels, word: str, content: bytes) -> None:
    answer = adopted_models.ask(Call("Results", f'"{word}"'.encode(), "application/json"))

    assert (answer.status_code, answer.content) == (200, content)


def test_a_function_is_the_handler(adopted_models: AdoptedModels) -> None:
    answer = adopted_models.ask(Call("Entry", b"x"))

    assert (answer.status_code, answer.text) == (200, "bytearray: bytearray(b'x')")


def test_the_health_check_of_containers_asks_as_a_client_does(
    stack: RunningStack, adopted_models: AdoptedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adopted_models["Entry"].model
    models = [each for each in stack.control.models() if each.model == model]
    monkeypatch.setattr(ControlClient, "models", lambda _: models)
    checks, failures = gateway_failures(stack.settings)
    assert (len(checks), failures) == (1, [])


def test_torchscript_and_labels_of_base_handler(adopted_models: AdoptedModels) -> None:
    scores = adopted_models.ask(Call("Scores", b"[0.1, 0.2, 0.3]", "application/json")).json()

    assert scores.keys() == {"cat", "dog"}
    assert sum(scores.values()) == pytest.approx(1.0)


def test_clients_of_one_batch_get_their_own_answers(
    adopted_models: AdoptedModels, tmp_path: Path
) -> None:
    """Of a handler that answers the first of a batch alone."""
    archive = write_legacy(
        tmp_path / "Four.mar",
        "first.py",
        FIRST_ALONE,
        {"c.yaml": "maxBatchDelay: 1000\n"},
        modelName="Four",
        configFile="c.yaml",
    )
    model = adopted_models.add("Four", archive, batch_size=4).model
    words = [f"word {number}" for number in range(4)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda word: adopted_models.post(model, word.encode()), words))

    assert [answer.json()["said"] for answer in answers] == words


@pytest.mark.parametrize("name", ["Json", "Kserve"])
def test_an_envelope_keeps_the_lengths_of_each_request(
    adopted_models: AdoptedModels, name: str
) -> None:
    bodies = [{"instances": [[0] * length] * length} for length in (1, 2, 3)]
    model = adopted_models[name].model

    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(
                lambda body: adopted_models.post(
                    model, json.dumps(body).encode(), "application/json"
                ),
                bodies,
            )
        )

    predictions = [answer.json()["predictions"] for answer in answers]
    assert predictions == [[["list", length]] * length for length in (1, 2, 3)]


def test_a_handler_that_is_late_is_ended_and_comes_back(
    adopted_models: AdoptedModels, tmp_path: Path
) -> None:
    """It sleeps 2 s, and its archive allows 1."""
    archive = write_legacy(
        tmp_path / "Late.mar",
        "late.py",
        MISBEHAVES,
        {"c.yaml": "responseTimeout: 1\n"},
        modelName="Late",
        configFile="c.yaml",
    )
    model = adopted_models.add("Late", archive).model
    other = adopted_models["Results"].model

    with ThreadPoolExecutor(4) as pool:
        late = pool.submit(adopted_models.post, model, b"sleep", "text/plain")
        others = pool.map(
            lambda _: adopted_models.post(other, b'"str"', "application/json"), range(12)
        )
        assert {(answer.status_code, answer.text) for answer in others} == {(200, "é")}
        answer = late.result()

    assert answer.json()["code"] == answer.status_code
    error = answer.status_code, answer.json()["error"]["code"]
    assert error in ENDED, answer.text
    wait_until(lambda: adopted_models.post(model, b"hello").status_code == 200, 120.0)


def test_adopted_and_native_versions_share_a_model_and_go_back(
    stack: RunningStack, new_model: str, tmp_path: Path
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
    stack: RunningStack, adopted_models: AdoptedModels, tmp_path: Path
) -> None:
    model = adopted_models["Entry"].model
    plan = StressPlan(
        url=stack.gateway_url,
        model=model,
        archive=adopted_archive(stack.settings.model_store, model),
        users=2,
        duration_s=2,
        warm_up_s=1,
        max_p99_ms=60_000.0,
    )

    result = run_stress(plan, tmp_path)

    assert result.breaches == (), result.figures.failures
    assert result.figures.requests > 0
    assert set(result.figures.versions) == {1}
