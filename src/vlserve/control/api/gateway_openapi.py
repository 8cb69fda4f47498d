"""What the API page says of predictions, which the gateway answers: every task's request and
answer, from the pydantic models of its file in handlers/."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vlserve.project import Folder
from vlserve.runtime.headers import API_KEY
from vlserve.runtime.inputs import VisualTextFields
from vlserve.runtime.task import Task, load_task

GATEWAY_KEY = "gateway key"
"""What the page calls it."""
REFERENCE = "#/components/schemas/{model}"
NO_TASKS = ("torchserve_handler", "triton_model", "adopted")
"""Files of handlers/ that describe no request: engine entry points, and adopted archives'."""
PATHS = {
    "/predictions/{model}": ("model",),
    "/predictions/{model}/{version}": ("model", "version"),
}
KINDS = {"model": "string", "version": "integer"}
ERRORS = {
    "400": "What was sent cannot be read",
    "401": "No or a wrong key",
    "404": "No such model or version",
    "413": "Too large",
    "422": "A field is missing, unknown or wrong",
    "429": "Too many requests",
    "503": "Overloaded; Retry-After says when to come again",
    "504": "No answer in time",
}


class PredictionErrorBody(BaseModel):
    code: str
    message: str


class PredictionError(BaseModel):
    error: PredictionErrorBody
    request_id: str | None = None


class AnsweredBy(BaseModel):
    """What every answer begins with."""

    model: str
    version: int
    request_id: str


def describe_predictions(app: FastAPI, handlers: Folder, gateway_url: str) -> None:
    """Put the predictions of every task in ``handlers`` on the page of ``app``."""
    own = app.openapi

    @cache
    def everything() -> dict[str, Any]:
        page = own()
        description = predictions(load_tasks(handlers), gateway_url)
        page["paths"] |= description["paths"]
        components = page.setdefault("components", {})
        components.setdefault("schemas", {}).update(description["schemas"])
        components.setdefault("securitySchemes", {})[GATEWAY_KEY] = {
            "type": "apiKey",
            "in": "header",
            "name": API_KEY,
            "description": "One of `gateway.api_keys`, where there are some.",
        }
        return page

    _set_openapi(app, everything)


def _set_openapi(app: FastAPI, page: Callable[[], dict[str, Any]]) -> None:
    app.openapi = page  # type: ignore[method-assign]  # as FastAPI's documentation does it


def load_tasks(handlers: Folder) -> dict[str, type[Task[Any]]]:
    """Load tasks by name. ArchiveUnreadable for a file that is no task."""
    tasks = {f.stem: f for f in handlers.glob("*.py") if f.stem not in NO_TASKS}
    return {name: load_task(tasks[name]) for name in sorted(tasks)}


def predictions(tasks: Mapping[str, type[Task[Any]]], gateway_url: str) -> dict[str, Any]:
    """Return ``paths`` and ``schemas`` of an OpenAPI page."""
    models: list[type[BaseModel]] = [AnsweredBy, PredictionError]
    for task in tasks.values():
        models += [task.fields, task.answer]
    references, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=REFERENCE
    )
    by_model = {model: schema for (model, _), schema in references.items()}
    _relax_texts(definitions["$defs"], tasks.values())
    requests = [by_model[task.fields] for task in tasks.values()]
    answers = [{"allOf": [by_model[AnsweredBy], by_model[t.answer]]} for t in tasks.values()]
    pairs = ", ".join(
        f"{name} ({task.fields.__name__}, {task.answer.__name__})" for name, task in tasks.items()
    )
    form = _form([definitions["$defs"][task.fields.__name__] for task in tasks.values()])
    operation: dict[str, Any] = {
        "summary": "Ask a model",
        "description": f"At the gateway. The model's task says which request and answer: {pairs}. "
        "In a form, files are sent as they are; in JSON as base64.",
        "security": [{}, {GATEWAY_KEY: []}],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/json": {
                    "schema": {"anyOf": requests},
                    "example": {"image": "base64 of a JPEG", "text": "a red door"},
                },
            },
        },
        "responses": {
            "200": _response("The answer", {"anyOf": answers}),
            **{code: _response(what, by_model[PredictionError]) for code, what in ERRORS.items()},
        },
    }
    paths = {
        path: {
            "servers": [{"url": gateway_url, "description": "The gateway"}],
            "parameters": [_parameter(name) for name in names],
            "post": operation | {"tags": ["predictions"], "operationId": f"predict_{names[-1]}"},
        }
        for path, names in PATHS.items()
    }
    return {"paths": paths, "schemas": definitions["$defs"]}


def _relax_texts(schemas: Mapping[str, Any], tasks: Iterable[type[Task[Any]]]) -> None:
    """Take the text from the required fields of tasks whose models may read images alone: which
    fields are needed is the model's to say."""
    for task in tasks:
        if issubclass(task.fields, VisualTextFields):
            schema = schemas[task.fields.__name__]
            schema["required"] = [name for name in schema["required"] if name != "text"]
            schema["properties"]["text"]["description"] = "Of a model that reads texts: required."


def _form(requests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of all tasks as those of one form, which a page shows a field each."""
    fields: dict[str, Any] = {}
    for request in requests:
        for name, schema in request["properties"].items():
            fields.setdefault(name, _form_field(schema))
    description = "The fields that the model's task takes; the others stay empty."
    return {"type": "object", "description": description, "properties": fields}


def _form_field(schema: Mapping[str, Any]) -> dict[str, Any]:
    kind = next(each for each in schema.get("anyOf", [schema]) if each["type"] != "null")
    if kind["type"] == "array":
        return {"type": "string", "description": "A list as JSON."}
    return {key: kind[key] for key in ("type", "format") if key in kind}


def _response(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": KINDS[name]}}
