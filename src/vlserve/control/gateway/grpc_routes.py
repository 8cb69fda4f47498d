"""Routes of the Open Inference Protocol's gRPC calls. Pure.

grpc_request.lua (serving_config/gateway/) has a call of ModelInfer go on as a POST to
/v2/models/…/infer, so versions, weights and limits are that request's. The other calls are answered
here by the bytes of their messages, so they need neither an engine nor the control service.
"""

import base64
from collections.abc import Iterator

from vlserve.control.domain import Routing
from vlserve.control.gateway.envoy_clusters import Config
from vlserve.control.gateway.grpc_messages import (
    NO,
    YES,
    model_metadata_response,
    server_metadata_response,
)
from vlserve.control.gateway.route_parts import (
    FILTER_ON,
    OPEN_TO_ALL,
    buffered,
    header,
    matches,
    refusal,
    with_filters,
)
from vlserve.control.gateway.v2_metadata import model_metadata, server_metadata
from vlserve.runtime import headers
from vlserve.settings_sections import GatewaySettings

SERVICE = "/inference.GRPCInferenceService"

MAX_CALL_BYTES = 65_536
"""Most bytes of a call whose message holds names alone."""

_LUA_REQUEST, _LUA_ANSWER = "vlserve.grpc_request", "vlserve.grpc_answer"
_BRIDGE = "envoy.filters.http.grpc_http1_reverse_bridge"
_CALL = header("content-type", matches(r"application/grpc(\+proto)?"))
_READ = {"name": headers.CALL, "present_match": True}
_NOT_HERE = {
    SERVICE: "the server answers ServerLive, ServerReady, ModelReady, ServerMetadata, "
    "ModelMetadata and ModelInfer, and no other call",
    "/org.pytorch.serve.grpc.inference.InferenceAPIsService": "TorchServe's gRPC calls are not "
    "answered: send POST /predictions/{model}, or ModelInfer of inference.GRPCInferenceService",
    "/org.pytorch.serve.grpc.management.ManagementAPIsService": "TorchServe's gRPC calls are not "
    "answered: use vlserve register, release and unload",
}


def call_paths(routing: Routing, gateway: GatewaySettings) -> list[Config]:
    """Return the routes of all calls; the first that matches counts."""
    return [*_answers(routing), *_calls(gateway.max_body_bytes), *_not_here()]


def _calls(max_body_bytes: int) -> Iterator[Config]:
    """Yield the routes that a call has until its message is read, which its filters depend on."""
    for method in ("ServerLive", "ServerReady"):
        yield with_filters(_call(method, MAX_CALL_BYTES), OPEN_TO_ALL["typed_per_filter_config"])
    for method in ("ServerMetadata", "ModelReady", "ModelMetadata"):
        yield _call(method, MAX_CALL_BYTES)
    yield _call("ModelInfer", max_body_bytes)


def _call(method: str, max_bytes: int) -> Config:
    route = {
        "match": {"path": f"{SERVICE}/{method}", "headers": [_CALL]},
        **_refusal("model_not_found", "no model of this name is served"),
    }
    filters = {_LUA_REQUEST: FILTER_ON, _BRIDGE: FILTER_ON, _LUA_ANSWER: FILTER_ON}
    return with_filters(buffered(route, max_bytes), filters)


def _answers(routing: Routing) -> Iterator[Config]:
    """Yield the routes of calls whose message has been read."""
    yield _answer("ServerLive", YES)
    yield _answer("ServerReady", NO if routing.unready else YES)
    yield _answer("ServerMetadata", server_metadata_response(server_metadata()))
    for route in routing.models:
        if route.is_released:
            yield _answer(f"ModelReady/{route.model}", YES)
        yield _answer(
            f"ModelMetadata/{route.model}", model_metadata_response(model_metadata(route))
        )
        for version in route.versions:
            name = f"{route.model}/{version}"
            about = model_metadata(route, version)
            yield _answer(f"ModelReady/{name}", YES)
            yield _answer(f"ModelMetadata/{name}", model_metadata_response(about))


def _answer(path: str, message: bytes) -> Config:
    """Answer with a message. grpc_answer.lua knows by the status that its bytes are no error."""
    ok = {"header": {"key": "grpc-status", "value": "0"}}
    return {
        "match": {"path": f"{SERVICE}/{path}", "headers": [_READ]},
        "direct_response": {
            "status": 200,
            "body": {"inline_bytes": base64.b64encode(message).decode("ascii")},
        },
        "response_headers_to_add": [ok],
    }


def _not_here() -> Iterator[Config]:
    """Yield what says of other calls that they are not answered, instead of that there is no such
    path."""
    for service, message in _NOT_HERE.items():
        yield {
            "match": {"prefix": f"{service}/", "headers": [_CALL]},
            **_refusal("not_implemented", message),
            "typed_per_filter_config": {_LUA_REQUEST: FILTER_ON, _LUA_ANSWER: FILTER_ON},
        }


def _refusal(code: str, message: str) -> Config:
    """Refuse a call. Its words become gRPC's, and grpc_answer.lua finds the status by the code: the
    one here is one whose words envoy.yaml does not replace."""
    return refusal(404, code, message)
