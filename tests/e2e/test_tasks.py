"""Tasks on the real stack: what is served is what the network says, eager.

`make test` serves one model of each task, `make test-long` the others.
"""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from support.eager_answers import eager_of
from support.engines import on_triton
from support.example_recipe import NAME, export_example
from support.questions import Question, questions_of, without_pictures
from support.running_stack import PROJECT
from support.tiny_kinds import SERVED
from support.tiny_models import Archives, tiny_models
from vlserve.control.domain import State
from vlserve.exporter.convert import Converter, Format
from vlserve.exporter.export import read_trained
from vlserve.runtime.task import difference, load_task
from vlserve.settings import Settings
from vlserve.testing import RunningStack

ATOL = 2e-4


def ask(http: httpx.Client, path: str, question: Question, as_form: bool) -> httpx.Response:
    if as_form:
        return http.post(path, files=question.form())
    return http.post(path, json=question.fields())


def served() -> list[Any]:
    """Return the models of SERVED, and all as ONNX."""
    others = [(name, "onnx") for name in tiny_models() if (name, "onnx") not in SERVED]
    return [
        *(pytest.param(*each, id="-".join(each)) for each in sorted(SERVED)),
        *(pytest.param(*each, marks=pytest.mark.long, id="-".join(each)) for each in others),
    ]


@on_triton
@pytest.mark.timeout(600)  # it may wait for the exports of all others
@pytest.mark.parametrize(("name", "format"), served())
def test_what_is_served_is_what_the_network_says(
    name: str, format: Format, archives: Archives, stack: RunningStack, tmp_path: Path
) -> None:
    report, model = archives.report(name, format), archives.models[name]
    questions = questions_of(report.manifest)
    version = report.manifest.version
    path = f"/predictions/{name}/{version}"
    stack.control.register(report.path)
    try:
        with ThreadPoolExecutor(2 * len(questions)) as pool:  # together, so that they share batches
            exchanges = [
                (question, pool.submit(ask, stack.http, path, question, as_form))
                for question in questions
                for as_form in (True, False)
            ]
        refusal = stack.http.post(path, json={**questions[0].fields(), "surprise": 1})
        overlay = stack.http.post(path, json={**questions[0].fields(), "overlay": True})
    finally:
        assert stack.control.unload(name, version).state is State.RETIRED
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (422, "field_invalid")

    settings = Settings(project_dir=PROJECT)
    checkpoint = read_trained(model.recipe, archives.checkpoint(name), None, settings)
    eager = eager_of(checkpoint, tmp_path)
    task = load_task(PROJECT / "handlers" / f"{model.task}.py")
    for question, future in exchanges:
        response = future.result()
        assert response.status_code == 200, response.text
        answer = response.json()
        assert (answer.pop("model"), answer.pop("version")) == (name, version)
        assert answer.pop("request_id") == response.headers["x-request-id"]
        task.answer.model_validate(answer)
        expected, numbers = eager.answer(question), without_pictures(answer, task.pictures)
        assert expected.keys() == numbers.keys()
        assert difference(expected, numbers, atol=ATOL) is None
    shows_a_map = "heat_map" in exchanges[0][1].result().json()
    assert (overlay.status_code == 200) == shows_a_map
    if shows_a_map:
        picture, cover = overlay.json()["overlay"], questions[0].looks[0].image
        assert cover is not None
        assert size_of(base64.b64decode(picture)) == size_of(cover)


def size_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        return image.size


def test_a_family_that_is_one_new_file_is_served(
    stack: RunningStack, converter: Converter, tmp_path: Path
) -> None:
    report = export_example(tmp_path, converter, "torchscript")
    stack.control.register(report.path)
    try:
        probe = report.manifest.probes[0]
        answer = stack.http.post(f"/predictions/{NAME}/1", json=probe.fields).json()
        assert difference(probe.answer, answer) is None
    finally:
        stack.control.unload(NAME, 1)


def test_the_page_of_the_api_describes_the_tasks(stack: RunningStack) -> None:
    with httpx.Client(base_url=stack.settings.control_url, trust_env=False) as http:
        page = http.get("/openapi.json").json()
    assert page["paths"]["/predictions/{model}"]["servers"][0]["url"] == stack.gateway_url
