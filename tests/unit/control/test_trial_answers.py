"""Answers to trials as the console draws them, and the forms that trials are filled in with."""

import json
from typing import Any

import pytest

from vlserve.control.api.console.trial_answers import Bar, Box, Stage, TrialAnswer, read_answer
from vlserve.control.api.console.trial_forms import FormField, TaskSchemas, form_fields
from vlserve.control.domain import EngineAnswer
from vlserve.exporter.echo import pack_echo
from vlserve.project import project_folder
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import Manifest

ABOUT = {"model": "m", "version": 3, "request_id": "trial-1"}


def _read(answer: dict[str, Any], status: int = 200, timing: str = "") -> TrialAnswer:
    return read_answer(3, EngineAnswer(status, json.dumps({**ABOUT, **answer}).encode(), timing))


def test_tags_and_answers_are_bars() -> None:
    tags = _read({"tags": [{"tag": "猫", "score": 0.75}, {"tag": "<b>", "score": 0.25}]})
    assert tags.bars == (Bar("猫", 0.75, 0.75), Bar("<b>", 0.25, 0.25))
    assert tags.values == {} and tags.request_id == "trial-1"
    assert _read({"results": [{"id": "i", "score": 7.5}]}).bars == (Bar("i", 7.5, None),)
    truth = _read({"label": "neutral", "scores": {"neutral": 0.9, "entailment": 0.1}})
    assert truth.bars == (Bar("neutral", 0.9, 0.9), Bar("entailment", 0.1, 0.1))
    assert truth.values == {"label": "neutral"}


def test_regions_and_heat_maps_lie_over_the_picture() -> None:
    regions = [{"box": [0.25, 0.5, 0.75, 1.0], "score": 0.5}, {"box": "no box", "score": 1}]
    assert _read({"regions": regions, "peak": None}).boxes == (Box(0.25, 0.5, 0.5, 0.5, 0.5),)
    answer = _read({"peak": {"x": 0.1, "y": 0.2}, "heat_map": "iVBORw0=", "grid": [[1.0]]})
    assert answer.peak == (0.1, 0.2)
    assert answer.pictures == {"heat_map": "iVBORw0="} and answer.values == {}
    assert _read({"heat_map": 'x" onerror="'}).pictures == {}


def test_texts_and_numbers_are_values() -> None:
    caption = _read({"caption": "a red door", "log_prob": -1.5})
    assert caption.values == {"caption": "a red door", "log_prob": "-1.5"}
    assert len(_read({"embedding": [0.125] * 512}).values["embedding"]) == 301


def test_stages_are_read_from_the_header() -> None:
    timing = "decode;dur=1.5, infer;dur=20, broken;dur=x, <script>;dur=1"
    assert _read({"caption": ""}, timing=timing).stages == (
        Stage("decode", 1.5),
        Stage("infer", 20.0),
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"error": {"code": "field_invalid", "message": "text: wrong"}}',
            "field_invalid: text: wrong",
        ),
        (b'{"code": 507, "message": "Worker died."}', "507: Worker died."),
        (b"<html>", "503: <html>"),
        (b"[" * 100_000, f"503: {'[' * 300}…"),
    ],
)
def test_errors_are_told(body: bytes, error: str) -> None:
    assert read_answer(3, EngineAnswer(503, body)).error == error


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return verify_archive(pack_echo(tmp_path_factory.mktemp("form"), "tagger", 1))


def test_a_form_has_the_fields_of_the_task_that_the_model_takes(manifest: Manifest) -> None:
    schemas = TaskSchemas(project_folder("handlers"))
    assert form_fields(schemas.of("tag"), manifest) == (
        FormField("image", "image", required=False),
        FormField("text", "text", required=True),
        FormField("top_k", "number", required=False),
    )
    ground = {field.name: field.kind for field in form_fields(schemas.of("ground"), manifest)}
    assert ground["overlay"] == "switch"
    retrieve = {field.name: field.kind for field in form_fields(schemas.of("retrieve"), manifest)}
    assert retrieve["candidates"] == "json"
    images_alone = manifest.model_copy(
        update={
            "text": None,
            "graphs": {
                name: graph.model_copy(update={"inputs": graph.inputs[:1]})
                for name, graph in manifest.graphs.items()
            },
        }
    )
    assert [field.name for field in form_fields(schemas.of("tag"), images_alone)] == [
        "image",
        "top_k",
    ]


def test_a_task_whose_file_is_gone_asks_for_an_image_and_a_text(manifest: Manifest) -> None:
    fields = form_fields(TaskSchemas(project_folder("handlers")).of("nothing"), manifest)
    assert [field.name for field in fields] == ["image", "text"]
