"""The paths that clients of TorchServe ask for, beside /predictions: health, explanations and
descriptions. What has no counterpart here is refused with what does it. Pure."""

from typing import Any

from vlserve.control.domain import ModelRoute, Routing
from vlserve.control.gateway.envoy_clusters import Config, held_somewhere
from vlserve.control.gateway.prediction_routes import METHODS
from vlserve.control.gateway.route_parts import OPEN_TO_ALL, asked_with, direct, refusal

EXPLANATIONS = "/explanations/"

_AT = "ask at POST /predictions/{model}"
_ELSEWHERE = (
    ("/invocations", f"vlserve has no call without a model's name: {_AT}"),
    ("/workflows", "vlserve runs no workflows: ask their models one after the other"),
    ("/wfpredict", "vlserve runs no workflows: ask their models one after the other"),
)
_BODIES = ("multipart/form-data", "application/json", "image/jpeg", "image/png", "image/webp")


def service_paths(routing: Routing) -> list[Config]:
    """Return the routes that name no model and stand before all others."""
    return [
        *_ping_paths(routing),
        {"match": _options({"path": "/"}), **direct(200, _description("{model}"))},
    ]


def model_paths(route: ModelRoute) -> list[Config]:
    """Return the routes of one model; the first that matches counts."""
    prefix = {"path_separated_prefix": f"/predictions/{route.model}"}
    return [
        {"match": _options(prefix), **direct(200, _description(route.model))},
        {
            "match": {"path_separated_prefix": f"{EXPLANATIONS}{route.model}"},
            **no_explanations(route),
        },
    ]


def unknown_paths() -> list[Config]:
    """Return the routes of what only TorchServe has, after all others; its gRPC calls are refused
    by grpc_routes.py."""
    return [
        *(
            {"match": {"prefix": path}, **refusal(501, "not_implemented", message)}
            for path, message in _ELSEWHERE
        ),
        {
            "match": {"safe_regex": {"regex": "/[^/]+(/[^/]+)?/(predict|invoke)"}},
            **refusal(501, "not_implemented", f"vlserve answers at another path: {_AT}"),
        },
    ]


def _ping_paths(routing: Routing) -> list[Config]:
    """Return the routes of TorchServe's health: healthy is who serves a version."""
    healthy, unhealthy = direct(200, {"status": "Healthy"}), direct(500, {"status": "Unhealthy"})
    state = healthy if held_somewhere(routing) else unhealthy
    wrong = refusal(405, "method_not_allowed", "health is asked for with GET", "GET, HEAD")
    return [
        {"match": asked_with("GET|HEAD|OPTIONS", {"path": "/ping"}), **state, **OPEN_TO_ALL},
        {"match": {"path": "/ping"}, **wrong},
    ]


def no_explanations(route: ModelRoute) -> Config:
    """Return the refusal of an explanation."""
    return refusal(
        501,
        "not_implemented",
        f"{route.model} explains no answers: that is done by handlers of TorchServe with "
        "get_insights, which `vlserve adopt` takes over: ask such a version by its number",
    )


def _options(path: Config) -> Config:
    """Match OPTIONS, but for a browser's question before a request, which has its own answer."""
    question = {"name": "access-control-request-method", "present_match": True}
    return asked_with("OPTIONS", path, question | {"invert_match": True})


def _description(model: str) -> dict[str, Any]:
    """Return the OpenAPI description of a model's calls, or with "{model}" of every model's."""
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": kind}}
        for name, kind in (("model", "string"), ("version", "integer"))
        if name == "version" or model.startswith("{")
    ]
    call: dict[str, Any] = {
        "summary": "Ask for a prediction",
        "requestBody": {"content": {body: {"schema": {}} for body in _BODIES}},
        "responses": {
            "200": _json("The answer; its other fields are the task's", ["model", "version"]),
            "default": _json("An error", ["error"]),
        },
    }
    calls = {method.lower(): call for method in METHODS.split("|")}
    path = f"/predictions/{model}"
    return {
        "openapi": "3.0.1",
        "info": {"title": "vlserve", "version": "1"},
        "paths": {
            path: {**calls, **({"parameters": parameters[:-1]} if parameters[:-1] else {})},
            f"{path}/{{version}}": {**calls, "parameters": parameters},
        },
    }


def _json(description: str, fields: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "required": fields}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
