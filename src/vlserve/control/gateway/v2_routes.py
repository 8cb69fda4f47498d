"""The Open Inference Protocol's routes (V2, REST): inference by the same versions, weights and
shadows as /predictions/; what a server says of itself and of its models, without asking an engine.
Pure.
"""

from collections.abc import Sequence

from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.prediction_routes import (
    Form,
    no_version,
    prediction_paths,
    unreleased,
)
from vlserve.control.gateway.route_parts import (
    NO_MODEL,
    OPEN_TO_ALL,
    asked_with,
    direct,
    error,
    refusal,
    with_slash,
)
from vlserve.control.gateway.v2_metadata import model_metadata, server_metadata
from vlserve.runtime import headers
from vlserve.settings_sections import GatewaySettings

PREFIX = "/v2/"

_NO_PATH = refusal(
    404, "not_found", "V2 has /v2/models/{model}[/versions/{version}], and below it ready and infer"
)

V2 = Form(
    of_model=lambda model: with_slash(f"/v2/models/{model}/infer"),
    of_version=lambda model, version: with_slash(f"/v2/models/{model}/versions/{version}/infer"),
    told={
        headers.PROTOCOL: "v2",
        headers.SENT_JSON_LENGTH: "%REQ(inference-header-content-length)%",
    },
)


def health_paths(reason: str = "") -> list[Config]:
    """Return the routes of the gateway's own health: it is live where it has them, and ready where
    nothing says why not (``reason``)."""
    ready = error("not_ready", reason) if reason else {"ready": True}
    return [
        route | OPEN_TO_ALL if "direct_response" in route else route
        for route in (
            *_asked("/v2/health/live", {"live": True}),
            *_asked("/v2/health/ready", ready, 503 if reason else 200),
        )
    ]


def model_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes of /v2/models/{model}…; the first that matches counts."""
    model = f"/v2/models/{route.model}"
    ready = {"name": route.model, "ready": True}
    infers = [
        *V2.of_model(route.model),
        *(path for version in route.versions for path in V2.of_version(route.model, version)),
    ]
    wrong_method = refusal(405, "method_not_allowed", "inference is asked for with POST", "POST")
    return [
        *prediction_paths(route, gateway, V2),
        *({"match": path, **wrong_method} for path in infers),
        *_asked(model, model_metadata(route)),
        *(
            _asked(f"{model}/ready", ready)
            if route.is_released
            else [{"match": {"path": f"{model}/ready"}, **unreleased(route)}]
        ),
        *(
            entry
            for version in route.versions
            for entry in (
                *_asked(f"{model}/versions/{version}", model_metadata(route, version)),
                *_asked(f"{model}/versions/{version}/ready", ready | {"version": str(version)}),
            )
        ),
        *(
            {"match": {"path_separated_prefix": f"{model}/versions/{version}"}, **_NO_PATH}
            for version in route.versions
        ),
        {"match": {"path_separated_prefix": f"{model}/versions"}, **no_version(route)},
        {"match": {"path_separated_prefix": model}, **_NO_PATH},
    ]


def other_paths() -> list[Config]:
    """Return the routes of the server's own metadata, and of what V2 has not."""
    return [
        *_asked("/v2", server_metadata()),
        {"match": {"prefix": "/v2/models/"}, **NO_MODEL},
        {"match": {"prefix": PREFIX}, **_NO_PATH},
    ]


def _asked(path: str, answer: object, status: int = 200) -> Sequence[Config]:
    """Return the routes of what is asked for with GET, also with a slash at its end."""
    wrong_method = refusal(405, "method_not_allowed", "it is asked for with GET", "GET, HEAD")
    paths = ({"path": path}, {"path": f"{path}/"})
    return [
        *({"match": asked_with("GET|HEAD", each), **direct(status, answer)} for each in paths),
        *({"match": each, **wrong_method} for each in paths),
    ]
