"""Routes of gRPC calls, and the scripts that read them, without an Envoy."""

import base64
import re
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from vlserve.control.domain import ModelRoute, Routing
from vlserve.control.gateway import grpc_routes
from vlserve.control.gateway.grpc_messages import model_metadata_response
from vlserve.control.gateway.route_parts import OPEN_TO_ALL
from vlserve.control.gateway.v2_metadata import EXTENSIONS
from vlserve.settings_sections import GatewaySettings

PROJECT = Path(__file__).parents[3]
GATEWAY = PROJECT / "serving_config" / "gateway"
TAGGER = ModelRoute("tagger", {2: 5, 1: 95}, (1, 2, 3))
READY_ONLY = ModelRoute("next", {}, (4,))
OPEN = OPEN_TO_ALL["typed_per_filter_config"]


def _routes(*models: ModelRoute) -> list[dict[str, Any]]:
    return grpc_routes.call_paths(Routing(models), GatewaySettings())


def _answers(*models: ModelRoute) -> dict[str, bytes]:
    """Path -> the bytes of its message."""
    return {
        route["match"]["path"].removeprefix(f"{grpc_routes.SERVICE}/"): base64.b64decode(
            route["direct_response"]["body"]["inline_bytes"]
        )
        for route in _routes(*models)
        if "inline_bytes" in route.get("direct_response", {}).get("body", {})
    }


def test_a_model_is_ready_where_it_has_traffic_and_a_version_where_it_is_loaded() -> None:
    ready = [path for path in _answers(TAGGER, READY_ONLY) if path.startswith("ModelReady/")]
    assert ready == [
        *("ModelReady/tagger", "ModelReady/tagger/1", "ModelReady/tagger/2", "ModelReady/tagger/3"),
        "ModelReady/next/4",
    ]


def test_a_client_reads_what_is_said_of_health() -> None:
    answers = _answers(TAGGER)
    assert pb.ServerLiveResponse.FromString(answers["ServerLive"]).live
    assert pb.ServerReadyResponse.FromString(answers["ServerReady"]).ready
    assert pb.ModelReadyResponse.FromString(answers["ModelReady/tagger"]).ready


def test_liveness_and_readiness_alone_need_no_key() -> None:
    open_to_all = {
        route["match"]["path"].rpartition("/")[2]
        for route in _routes(TAGGER)
        if OPEN.items() <= route.get("typed_per_filter_config", {}).items()
    }
    assert open_to_all == {"ServerLive", "ServerReady"}


def test_a_call_that_was_not_read_gets_no_answer() -> None:
    """A client cannot skip the filters by a path of its own: the header is taken from it."""
    for route in _routes(TAGGER):
        if route["direct_response"]["status"] == 200:
            assert {"name": "x-vlserve-call", "present_match": True} in route["match"]["headers"]


def test_the_script_knows_the_status_of_each_code_that_the_gateway_says() -> None:
    lua = (GATEWAY / "grpc_answer.lua").read_text(encoding="utf-8")
    script_statuses = dict(re.findall(r"(\w+) = (\d{3})\b", lua))
    page = (PROJECT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    of_gateway = page[page.index("By the gateway:") : page.index("## Of the control service")]
    page_statuses = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", of_gateway, re.MULTILINE))
    assert script_statuses == {
        code: status for code, status in page_statuses.items() if code != "engine_failed"
    }


def test_a_client_reads_what_is_said_of_a_model() -> None:
    tensors = [{"name": "tag", "datatype": "BYTES", "shape": (-1, -1)}]
    about = {"name": "tagger", "versions": ["1", "2"], "platform": "vlserve"}
    data = model_metadata_response(about | {"inputs": [], "outputs": tensors})
    response = pb.ModelMetadataResponse.FromString(data)
    assert (response.name, list(response.versions), response.platform) == (
        "tagger",
        ["1", "2"],
        "vlserve",
    )
    assert not response.inputs
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in response.outputs] == [
        ("tag", "BYTES", [-1, -1])
    ]


def test_metadata_are_said_of_the_server_of_each_model_and_of_each_version() -> None:
    answers = _answers(TAGGER, READY_ONLY)
    server = pb.ServerMetadataResponse.FromString(answers["ServerMetadata"])
    assert (server.name, list(server.extensions)) == ("vlserve", [*EXTENSIONS])
    responses = {
        path.removeprefix("ModelMetadata/"): pb.ModelMetadataResponse.FromString(answer)
        for path, answer in answers.items()
        if path.startswith("ModelMetadata/")
    }
    assert {path: list(each.versions) for path, each in responses.items()} == {
        "tagger": ["1", "2", "3"],
        **{f"tagger/{version}": [str(version)] for version in TAGGER.versions},
        "next": ["4"],
        "next/4": ["4"],
    }
