"""The routes of KServe's V1 protocol, which TorchServe's clients ask as well: predictions by the
same versions, weights and shadows as /predictions/; explanations are refused. Pure."""

from vlserve.control.domain import ModelRoute, Routing
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.prediction_routes import Form, prediction_paths, unreleased
from vlserve.control.gateway.route_parts import asked_with, direct, refusal, with_slash
from vlserve.control.gateway.torchserve_routes import no_explanations
from vlserve.runtime import headers
from vlserve.settings_sections import GatewaySettings

PREFIX = "/v1/models/"

V1 = Form(
    of_model=lambda model: with_slash(f"{PREFIX}{model}:predict"),
    of_version=lambda model, version: (),
    told={headers.PROTOCOL: "v1"},
)


def service_paths(routing: Routing) -> list[Config]:
    """Return the route that lists the models of which a version has weight."""
    names = [route.model for route in routing.models if route.is_released]
    return [{"match": asked_with("GET", {"path": "/v1/models"}), **direct(200, {"models": names})}]


def model_paths(route: ModelRoute, gateway: GatewaySettings) -> list[Config]:
    """Return the routes of one model; the first that matches counts."""
    model = f"{PREFIX}{route.model}"
    ready = direct(200, {"name": route.model, "ready": True})
    readiness = ready if route.is_released else unreleased(route)
    get = refusal(405, "method_not_allowed", "readiness is asked for with GET", "GET")
    post = refusal(405, "method_not_allowed", "predictions are asked for with POST", "POST")
    return [
        *prediction_paths(route, gateway, V1),
        *({"match": path, **post} for path in V1.of_model(route.model)),
        *({"match": path, **no_explanations(route)} for path in with_slash(f"{model}:explain")),
        *({"match": asked_with("GET", path), **readiness} for path in with_slash(model)),
        *({"match": path, **get} for path in with_slash(model)),
    ]
