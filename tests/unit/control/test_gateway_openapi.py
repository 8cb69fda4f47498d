"""The API page describes every task's requests and answers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from vlserve.control.api.gateway_openapi import describe_predictions, load_tasks
from vlserve.runtime.errors import ArchiveUnreadable

HANDLERS = Path(__file__).parents[3] / "handlers"
URL = "http://127.0.0.1:8080"


def test_every_task_is_on_the_page() -> None:
    app = FastAPI()
    app.get("/health")(lambda: None)
    describe_predictions(app, HANDLERS, URL)
    page = TestClient(app).get("/openapi.json").json()
    assert set(page["paths"]) == {
        "/health",
        "/predictions/{model}",
        "/predictions/{model}/{version}",
    }
    route = page["paths"]["/predictions/{model}"]
    assert route["servers"][0]["url"] == URL
    schemas, tasks = page["components"]["schemas"], load_tasks(HANDLERS)
    assert set(tasks) >= {
        "tag",
        "match",
        "embed",
        "caption",
        "answer",
        "entail",
        "reason",
        "ground",
    }
    content = route["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    answers = route["post"]["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    for place, task in enumerate(tasks.values()):
        reference = {"$ref": f"#/components/schemas/{task.fields.__name__}"}
        assert content["application/json"]["schema"]["anyOf"][place] == reference
        answer_name = answers[place]["allOf"][1]["$ref"].rpartition("/")[2]
        assert set(schemas[answer_name]["properties"]) == set(task.answer.model_fields)
        fields = schemas[task.fields.__name__]
        assert set(fields["properties"]) == set(task.fields.model_fields)
        assert fields["additionalProperties"] is False
        assert set(task.fields.model_fields) <= set(form["properties"])
    assert {"tag", "score"} == set(schemas["Tag"]["properties"])


def test_the_form_has_a_plain_field_for_everything() -> None:
    """A page shows no fields for a choice of schemas, and fills in what has a default."""
    content = _asked()["requestBody"]["content"]
    fields = content["multipart/form-data"]["schema"]["properties"]
    for name in ("image", "image2", "features", "boxes"):
        assert fields[name] == {"type": "string", "format": "binary"}, name
    assert fields["text"] == {"type": "string"}
    assert fields["top_k"] == {"type": "integer"}
    assert all(not {"anyOf", "default", "required"} & set(field) for field in fields.values())
    assert all(field["type"] not in ("array", "object") for field in fields.values())


def test_a_text_is_required_by_models_that_read_one_alone() -> None:
    """A tagger may have a graph of images alone, which refuses a text."""
    app = FastAPI()
    describe_predictions(app, HANDLERS, URL)
    schemas = app.openapi()["components"]["schemas"]
    for name, task in load_tasks(HANDLERS).items():
        schema = schemas[task.fields.__name__]
        assert "text" not in schema.get("required", []), name
    assert "required" in schemas["TagFields"]["properties"]["text"]["description"]


def test_predictions_need_no_key_of_the_control_service() -> None:
    assert _asked()["security"] == [{}, {"gateway key": []}]


def _asked() -> Any:
    app = FastAPI()
    describe_predictions(app, HANDLERS, URL)
    return app.openapi()["paths"]["/predictions/{model}"]["post"]


def test_every_task_says_what_it_answers() -> None:
    for name, task in load_tasks(HANDLERS).items():
        assert task.answer.model_fields, name


def test_a_file_that_is_no_task_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def", encoding="utf-8")
    with pytest.raises(ArchiveUnreadable, match=r"broken\.py"):
        load_tasks(tmp_path)


def test_the_page_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from fastapi import FastAPI\n"
        "from vlserve.control.api.gateway_openapi import describe_predictions\n"
        f"app = FastAPI(); describe_predictions(app, Path({str(HANDLERS)!r}), ''); app.openapi()\n"
        "assert not {'torch', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
