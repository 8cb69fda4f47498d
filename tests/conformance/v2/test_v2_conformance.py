"""What the Open Inference Protocol (V2, REST) asks of a server, a point each."""

from math import prod
from typing import Any

import httpx
import pytest

from conformance.v2.server import Server, outputs_of, packed


def check_error(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert isinstance(response.json()["error"], str)
    assert response.json()["error"]


def values(outputs: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: output["data"] for name, output in outputs.items()}


@pytest.mark.parametrize("what", ["live", "ready"])
def test_health(v2: Server, what: str) -> None:
    assert v2.http.get(f"/v2/health/{what}").status_code == 200


def test_server_metadata(v2: Server) -> None:
    metadata = v2.http.get("/v2").raise_for_status().json()
    assert isinstance(metadata["name"], str)
    assert isinstance(metadata["version"], str)
    assert all(isinstance(extension, str) for extension in metadata["extensions"])


def test_model_metadata(v2: Server) -> None:
    assert v2.metadata["name"] == v2.model
    assert isinstance(v2.metadata["platform"], str)
    assert all(isinstance(version, str) for version in v2.metadata["versions"])
    tensors = [*v2.metadata["inputs"], *v2.metadata["outputs"]]
    assert tensors
    for tensor in tensors:
        assert isinstance(tensor["name"], str)
        assert isinstance(tensor["datatype"], str)
        assert all(isinstance(dim, int) for dim in tensor["shape"])


def test_metadata_of_a_version(v2: Server) -> None:
    for version in v2.metadata["versions"]:
        metadata = v2.http.get(f"{v2.path}/versions/{version}").raise_for_status().json()
        assert metadata["name"] == v2.model
        assert metadata["inputs"]


def test_ready_model(v2: Server) -> None:
    assert v2.http.get(f"{v2.path}/ready").status_code == 200


def test_ready_version(v2: Server) -> None:
    for version in v2.metadata["versions"]:
        assert v2.http.get(f"{v2.path}/versions/{version}/ready").status_code == 200


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_unknown_model(v2: Server, path: str) -> None:
    assert 400 <= v2.http.get(f"/v2/models/no-such-model{path}").status_code < 500


def test_unknown_model_is_told_in_an_error(v2: Server) -> None:
    check_error(v2.http.get("/v2/models/no-such-model"))
    check_error(v2.infer({"inputs": []}, "/v2/models/no-such-model"))


def test_unknown_version(v2: Server) -> None:
    assert 400 <= v2.http.get(f"{v2.path}/versions/987654/ready").status_code < 500
    check_error(v2.infer({"inputs": v2.inputs()}, f"{v2.path}/versions/987654"))


def test_inference(v2: Server) -> None:
    response = v2.infer({"inputs": v2.inputs()})
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    assert answer["model_name"] == v2.model
    metadata = {output["name"]: output for output in v2.metadata["outputs"]}
    for name, output in outputs_of(response).items():
        assert output["datatype"] == metadata[name]["datatype"]
        assert len(output["shape"]) == len(metadata[name]["shape"])
        assert len(output["data"]) == prod(output["shape"])


def test_inference_of_a_version(v2: Server) -> None:
    version = v2.metadata["versions"][0]
    response = v2.infer({"inputs": v2.inputs()}, f"{v2.path}/versions/{version}")
    assert response.json()["model_version"] == version


def test_id_comes_back(v2: Server) -> None:
    assert v2.infer({"id": "mine-1", "inputs": v2.inputs()}).json()["id"] == "mine-1"


def test_requested_outputs_alone(v2: Server) -> None:
    for output in outputs_of(v2.infer({"inputs": v2.inputs()})):
        request = {"inputs": v2.inputs(), "outputs": [{"name": output}]}
        assert list(outputs_of(v2.infer(request))) == [output]


def test_unknown_output(v2: Server) -> None:
    check_error(v2.infer({"inputs": v2.inputs(), "outputs": [{"name": "no-such-output"}]}))


def test_nested_data(v2: Server) -> None:
    inputs = v2.inputs()
    flat = outputs_of(v2.infer({"inputs": inputs}))
    for tensor in inputs:
        for dim in reversed(tensor["shape"][1:]):
            rows = range(0, len(tensor["data"]), dim)
            tensor["data"] = [tensor["data"][at : at + dim] for at in rows]
    assert values(outputs_of(v2.infer({"inputs": inputs}))) == values(flat)


def test_batch(v2: Server) -> None:
    if any(tensor["shape"][0] != -1 for tensor in v2.metadata["inputs"]):
        pytest.skip("the model takes no batch")
    alone = outputs_of(v2.infer({"inputs": v2.inputs()}))
    both = outputs_of(v2.infer({"inputs": v2.inputs(items=2)}))
    for name, output in both.items():
        assert output["shape"] == [2, *alone[name]["shape"][1:]]


def test_no_json(v2: Server) -> None:
    check_error(v2.http.post(f"{v2.path}/infer", content=b"{"))


def test_no_inputs(v2: Server) -> None:
    check_error(v2.infer({"inputs": []}))
    check_error(v2.infer({}))


def _changed(v2: Server, **changes: Any) -> list[dict[str, Any]]:
    first, *others = v2.inputs()
    return [
        {name: value for name, value in (first | changes).items() if value is not None},
        *others,
    ]


def test_unknown_input(v2: Server) -> None:
    check_error(v2.infer({"inputs": _changed(v2, name="no-such-input")}))


def test_unknown_datatype(v2: Server) -> None:
    check_error(v2.infer({"inputs": _changed(v2, datatype="COMPLEX")}))


def test_shape_that_does_not_fit(v2: Server) -> None:
    (first, *_) = v2.inputs()
    check_error(v2.infer({"inputs": _changed(v2, shape=[7, *first["shape"][1:]])}))
    check_error(v2.infer({"inputs": _changed(v2, shape=None)}))


def test_negative_shape(v2: Server) -> None:
    check_error(v2.infer({"inputs": _changed(v2, shape=[-1])}))


def test_missing_data(v2: Server) -> None:
    check_error(v2.infer({"inputs": _changed(v2, data=None)}))


def _in_binary(v2: Server) -> tuple[list[dict[str, Any]], bytes]:
    inputs, raw = [], b""
    for tensor in v2.inputs():
        bytes_ = packed(tensor)
        about = {name: value for name, value in tensor.items() if name != "data"}
        inputs.append(about | {"parameters": {"binary_data_size": len(bytes_)}})
        raw += bytes_
    return inputs, raw


@pytest.fixture
def binary(v2: Server) -> Server:
    """The server, where it has the binary data extension."""
    if "binary_tensor_data" not in v2.http.get("/v2").json()["extensions"]:
        pytest.skip("the server has no binary data extension")
    return v2


def test_binary_inputs(binary: Server) -> None:
    inputs, raw = _in_binary(binary)
    outputs = outputs_of(binary.infer_raw({"inputs": inputs}, raw))
    assert values(outputs) == values(outputs_of(binary.infer({"inputs": binary.inputs()})))


def test_binary_outputs(binary: Server) -> None:
    request = {"inputs": binary.inputs(), "parameters": {"binary_data_output": True}}
    response = binary.infer(request)
    expected = values(outputs_of(binary.infer({"inputs": binary.inputs()})))
    assert "Inference-Header-Content-Length" in response.headers
    assert values(outputs_of(response)) == expected


def test_binary_of_one_output(binary: Server) -> None:
    first, *others = outputs_of(binary.infer({"inputs": binary.inputs()}))
    choices = [{"name": first, "parameters": {"binary_data": True}}]
    choices += [{"name": name, "parameters": {"binary_data": False}} for name in others]
    response = binary.infer({"inputs": binary.inputs(), "outputs": choices})
    outputs = outputs_of(response)
    assert list(outputs) == [first, *others]
    in_binary = [
        name for name in outputs if "binary_data_size" in outputs[name].get("parameters", {})
    ]
    assert in_binary == [first]


def test_binary_sizes_that_do_not_fit(binary: Server) -> None:
    inputs, raw = _in_binary(binary)
    check_error(binary.infer_raw({"inputs": inputs}, raw[:-1]))
    check_error(binary.infer_raw({"inputs": inputs}, raw + b"more"))


def test_wrong_length_of_the_json(binary: Server) -> None:
    inputs, raw = _in_binary(binary)
    check_error(binary.infer_raw({"inputs": inputs}, raw, length=3))
    check_error(binary.infer_raw({"inputs": inputs}, raw, length=10**9))
