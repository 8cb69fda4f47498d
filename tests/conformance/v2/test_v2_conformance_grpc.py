"""What the Open Inference Protocol (V2, gRPC) asks of a server, a point each."""

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conformance.v2.server import Server, packed

WITHIN_S = 60.0
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def stub(v2_grpc: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(v2_grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _request(v2: Server, items: int = 1, *, raw: bool = True, **fields: Any) -> Any:
    request = pb.ModelInferRequest(**{"model_name": v2.model} | fields)
    for tensor in v2.inputs(items):
        about = request.inputs.add(
            name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
        )
        if raw:
            request.raw_input_contents.append(packed(tensor))
        else:
            values = [
                value.encode() if isinstance(value, str) else value for value in tensor["data"]
            ]
            getattr(about.contents, CONTENTS[tensor["datatype"]]).extend(values)
    return request


def _code(call: Any, request: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=WITHIN_S)
    assert error.value.details()  # type: ignore[attr-defined]
    code: grpc.StatusCode = error.value.code()  # type: ignore[attr-defined]
    return code


def _sizes(answer: Any) -> list[tuple[str, list[int]]]:
    """Each output's name and shape, once its bytes have been counted."""
    assert len(answer.raw_output_contents) == len(answer.outputs)
    return [(output.name, list(output.shape)) for output in answer.outputs]


def test_the_server_is_live_and_ready(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=WITHIN_S).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=WITHIN_S).ready


def test_the_server_says_what_it_is(stub: Any) -> None:
    about = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=WITHIN_S)
    assert about.name and about.version


def test_a_model_says_what_it_takes_and_gives_as_in_rest(stub: Any, v2: Server) -> None:
    about = stub.ModelMetadata(pb.ModelMetadataRequest(name=v2.model), timeout=WITHIN_S)
    assert (about.name, about.platform) == (v2.model, v2.metadata["platform"])
    assert list(about.versions) == v2.metadata["versions"]
    for ours, theirs in ((about.inputs, "inputs"), (about.outputs, "outputs")):
        assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in ours] == [
            (tensor["name"], tensor["datatype"], [int(dim) for dim in tensor["shape"]])
            for tensor in v2.metadata[theirs]
        ]


def test_a_model_and_its_versions_are_ready(stub: Any, v2: Server) -> None:
    for version in ("", *v2.metadata["versions"]):
        request = pb.ModelReadyRequest(name=v2.model, version=version)
        assert stub.ModelReady(request, timeout=WITHIN_S).ready


def test_an_unknown_model_is_not_ready(stub: Any) -> None:
    """Some servers say so, some refuse."""
    request = pb.ModelReadyRequest(name="no-such-model")
    try:
        assert not stub.ModelReady(request, timeout=WITHIN_S).ready
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_inference_answers_with_names_and_id(stub: Any, v2: Server) -> None:
    answer = stub.ModelInfer(_request(v2, id="mine"), timeout=WITHIN_S)
    assert (answer.model_name, answer.id) == (v2.model, "mine")
    assert answer.model_version in v2.metadata["versions"]
    names = [output["name"] for output in v2.metadata["outputs"]]
    assert {name for name, _ in _sizes(answer)} <= {*names}


def test_a_version_is_asked_for(stub: Any, v2: Server) -> None:
    for version in v2.metadata["versions"]:
        answer = stub.ModelInfer(_request(v2, model_version=version), timeout=WITHIN_S)
        assert answer.model_version == version


def test_several_items_have_as_many_answers(stub: Any, v2: Server) -> None:
    answer = stub.ModelInfer(_request(v2, items=3), timeout=WITHIN_S)
    assert all(shape[0] == 3 for _, shape in _sizes(answer))


def test_contents_are_read_as_raw_contents_are(stub: Any, v2: Server) -> None:
    version = v2.metadata["versions"][0]
    raw, contents = (
        stub.ModelInfer(_request(v2, raw=raw, model_version=version), timeout=WITHIN_S)
        for raw in (True, False)
    )
    assert _sizes(raw) == _sizes(contents)
    assert raw.raw_output_contents[0] == contents.raw_output_contents[0]


def test_raw_outputs_have_as_many_bytes_as_their_shape_says(stub: Any, v2: Server) -> None:
    answer = stub.ModelInfer(_request(v2, items=2), timeout=WITHIN_S)
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        count = 1
        for dim in output.shape:
            count *= dim
        if output.datatype == "BYTES":
            at = 0
            for _ in range(count):
                at += 4 + struct.unpack_from("<I", raw, at)[0]
            assert at == len(raw)
        elif output.datatype == "FP32":
            assert len(raw) == 4 * count


def test_an_output_is_asked_for(stub: Any, v2: Server) -> None:
    name = v2.metadata["outputs"][-1]["name"]
    request = _request(v2)
    request.outputs.add(name=name)
    answer = stub.ModelInfer(request, timeout=WITHIN_S)
    assert [output for output, _ in _sizes(answer)] == [name]


def test_a_refusal_has_a_code_and_a_reason(stub: Any, v2: Server) -> None:
    not_found = grpc.StatusCode.NOT_FOUND
    assert _code(stub.ModelInfer, _request(v2, model_name="no-such-model")) is not_found
    assert _code(stub.ModelMetadata, pb.ModelMetadataRequest(name="no-such-model")) is not_found
    bad = grpc.StatusCode.INVALID_ARGUMENT
    assert _code(stub.ModelInfer, pb.ModelInferRequest(model_name=v2.model)) is bad
    unknown = _request(v2)
    unknown.outputs.add(name="no-such-output")
    assert _code(stub.ModelInfer, unknown) is bad
    short = _request(v2)
    short.inputs[0].shape[0] = 7
    assert _code(stub.ModelInfer, short) is bad
    few = _request(v2)
    del few.raw_input_contents[1:]
    assert len(few.inputs) == 1 or _code(stub.ModelInfer, few) is bad
