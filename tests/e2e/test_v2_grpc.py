"""gRPC clients of the whole stack: tritonclient asks, as somebody else's client."""

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from support.engine_workers import worker_pids
from support.engines import on_triton
from support.picture_files import raw_png
from support.recorded import RECORDINGS, STORE, unpack
from support.running_stack import gateway_admin, wait_until
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.probes import drawn_image
from vlserve.testing import RunningStack

pytestmark = on_triton

MODEL, SLOW = "halves", "slow"
ITEMS = [
    (base64.b64decode(drawn_image(number)), text) for number, text in enumerate(("cat", "a b"))
]
NO_IMAGE = (b"no image", "cat")
MIB = 1 << 20


@pytest.fixture(scope="module")
def serving_stack(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> RunningStack:
    """Versions 1 and 2, which answer alike, have half of the traffic each."""
    folder = tmp_path_factory.mktemp("echo")
    for version in (1, 2):
        stack.control.register(pack_echo(folder, MODEL, version))
    stack.control.release(MODEL, 1)
    stack.control.start_rollout(MODEL, 2, {"weights": [50, 100], "hold_s": 3600})
    return stack


@pytest.fixture(scope="module")
def client(serving_stack: RunningStack) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{serving_stack.settings.gateway.port}") as client:
        yield client


def _inputs(items: list[tuple[bytes, str]]) -> list[triton.InferInput]:
    columns = {
        "image": [image for image, _ in items],
        "text": [text.encode() for _, text in items],
    }
    inputs = []
    for name, values in columns.items():
        tensor = triton.InferInput(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
        inputs.append(tensor)
    return inputs


def _plain(stack: RunningStack, item: tuple[bytes, str], version: int) -> list[tuple[str, float]]:
    form = {"image": item[0], "text": item[1].encode()}
    answer = stack.http.post(f"/predictions/{MODEL}/{version}", files=form)
    return [(tag["tag"], tag["score"]) for tag in answer.raise_for_status().json()["tags"]]


def _tags(result: triton.InferResult, at: int) -> list[tuple[str, float]]:
    """The tags of one item."""
    names, scores = result.as_numpy("tag")[at], result.as_numpy("score")[at]
    return [(name.decode(), float(score)) for name, score in zip(names, scores, strict=True)]


def test_each_item_has_the_plain_form_s_answer(
    serving_stack: RunningStack, client: triton.InferenceServerClient
) -> None:
    for version in (1, 2):
        result = client.infer(MODEL, _inputs(ITEMS), str(version), request_id="mine")
        answer = result.get_response()
        assert (answer.model_name, answer.model_version, answer.id) == (MODEL, str(version), "mine")
        for at, item in enumerate(ITEMS):
            plain = _plain(serving_stack, item, version)
            assert [tag for tag, _ in _tags(result, at)] == [tag for tag, _ in plain]
            np.testing.assert_allclose(
                [score for _, score in _tags(result, at)], [score for _, score in plain], rtol=1e-6
            )


def test_an_output_is_asked_for_by_name(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("score")]
    result = client.infer(MODEL, _inputs(ITEMS), "1", outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["score"]


def test_a_bad_item_fails_its_request_or_with_partial_itself(
    client: triton.InferenceServerClient,
) -> None:
    inputs = _inputs([ITEMS[0], NO_IMAGE])
    with pytest.raises(InferenceServerException) as error:
        client.infer(MODEL, inputs, "1")
    assert error.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
    assert error.value.message().startswith("item 1: image_unreadable: ")
    result = client.infer(MODEL, inputs, "1", parameters={"partial": True})
    good, bad = result.as_numpy("errors")
    assert (good, bad.partition(b":")[0]) == (b"", b"image_unreadable")
    alone = client.infer(MODEL, _inputs([ITEMS[0]]), "1")
    assert _tags(result, 0) == _tags(alone, 0)


def _without_data(name: str) -> list[triton.InferInput]:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"x"], dtype=np.object_))
    return [tensor]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"inputs": _inputs(ITEMS * 40)}, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ({"inputs": _without_data("nothing")}, grpc.StatusCode.INVALID_ARGUMENT),
        (
            {"inputs": _inputs(ITEMS), "outputs": [triton.InferRequestedOutput("none")]},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ({"inputs": _inputs(ITEMS), "model_version": "9"}, grpc.StatusCode.NOT_FOUND),
        ({"inputs": _inputs(ITEMS), "model_name": "no-such"}, grpc.StatusCode.NOT_FOUND),
    ],
)
def test_a_refusal_has_a_code(
    client: triton.InferenceServerClient, arguments: dict[str, Any], code: grpc.StatusCode
) -> None:
    with pytest.raises(InferenceServerException) as error:
        client.infer(**{"model_name": MODEL, "model_version": "1"} | arguments)
    assert error.value.status() == str(code), error.value.message()


def test_contents_are_read_as_raw_contents_are(
    serving_stack: RunningStack, client: triton.InferenceServerClient
) -> None:
    """As KServe's client sends them."""
    message = triton.service_pb2.ModelInferRequest(model_name=MODEL, model_version="1")
    for name, value in (("image", ITEMS[0][0]), ("text", b"cat")):
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(value)
    with grpc.insecure_channel(f"127.0.0.1:{serving_stack.settings.gateway.port}") as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        result = triton.InferResult(stub.ModelInfer(message, timeout=60))
    assert _tags(result, 0) == _tags(client.infer(MODEL, _inputs(ITEMS[:1]), "1"), 0)


def test_a_picture_of_20_mib_is_answered(client: triton.InferenceServerClient) -> None:
    width, height = 2640, 2640
    noise = np.random.default_rng(1).integers(0, 256, (height, 1 + 3 * width), dtype=np.uint8)
    noise[:, 0] = 0  # each row behind its filter byte
    picture = raw_png(width, height, 8, 2, noise.tobytes())
    assert 19 * MIB < len(picture) <= 20 * MIB  # more than a stream's window, and most of an image
    result = client.infer(MODEL, _inputs([(picture, "cat")]), "1")
    assert result.as_numpy("tag").shape[0] == 1


def test_half_of_the_calls_meet_each_version_and_count_for_the_release(
    serving_stack: RunningStack, client: triton.InferenceServerClient
) -> None:
    keys = [f"caller-{number}" for number in range(400)]

    def request_count() -> int:
        windows = serving_stack.control.rollout(MODEL).windows
        return sum(window.candidate.requests + window.stable.requests for window in windows)

    before = request_count()

    def version(key: str) -> str:
        result = client.infer(MODEL, _inputs(ITEMS[:1]), headers={"x-sticky-key": key})
        return str(result.get_response().model_version)

    with ThreadPoolExecutor(4) as pool:
        versions = dict(zip(keys, pool.map(version, keys), strict=True))
    share = sum(number == "2" for number in versions.values()) / len(versions)
    assert abs(share - 0.5) < 5 * (0.25 / len(versions)) ** 0.5
    assert {key: version(key) for key in keys[:10]} == {key: versions[key] for key in keys[:10]}
    for key in keys[:10]:
        plain = serving_stack.http.post(
            f"/predictions/{MODEL}", files={"text": b"cat"}, headers={"x-sticky-key": key}
        )
        assert plain.headers["x-model-version"] == versions[key]

    wait_until(lambda: request_count() - before >= len(versions), timeout_s=60.0)


def test_small_calls_say_what_is_served(
    serving_stack: RunningStack, client: triton.InferenceServerClient
) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "2")
    about = client.get_server_metadata()
    assert about.name == "vlserve"
    model = client.get_model_metadata(MODEL)
    assert (model.name, sorted(model.versions)) == (MODEL, ["1", "2"])
    assert {tensor.name: tensor.datatype for tensor in model.inputs} == {
        "image": "BYTES",
        "text": "BYTES",
    }
    assert {tensor.name: tensor.datatype for tensor in model.outputs} == {
        "tag": "BYTES",
        "score": "FP32",
    }


def test_a_worker_that_dies_costs_no_call(
    serving_stack: RunningStack, client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    """It is killed with a batch in hand: what TorchServe is gathering for a worker that dies
    meanwhile is dropped by it, and answered 504 by the gateway."""
    serving_stack.control.register(pack_echo(tmp_path, SLOW, 1, delay_ms=1000))
    serving_stack.control.release(SLOW, 1)

    def ask(_: int) -> int:
        result = client.infer(SLOW, _inputs(ITEMS[:1]))
        return int(result.as_numpy("tag").shape[0])

    def active_requests() -> int:
        with gateway_admin(serving_stack.settings) as admin:
            return admin.sum(rf"^cluster\.{SLOW}-1\.upstream_rq_active$")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, number) for number in range(4)]
        wait_until(lambda: active_requests() == len(futures))
        time.sleep(0.3)  # longer than a batch is gathered
        os.kill(worker_pids(serving_stack.settings, SLOW)[1][0], signal.SIGKILL)
        futures += [pool.submit(ask, number) for number in range(8)]
        assert [each.result() for each in futures] == [1] * 12


@pytest.mark.parametrize(("recording", "version"), list(zip(RECORDINGS, (1, 2), strict=True)))
def test_an_archive_of_earlier_code_answers(
    serving_stack: RunningStack,
    client: triton.InferenceServerClient,
    tmp_path: Path,
    recording: str,
    version: int,
) -> None:
    folder = unpack(recording, tmp_path) / STORE / "banner" / str(version)
    serving_stack.control.register(folder / f"banner-{version}.mar")
    result = client.infer("banner", _inputs(ITEMS), str(version))
    form = {"image": ITEMS[1][0], "text": ITEMS[1][1].encode()}
    plain = serving_stack.http.post(f"/predictions/banner/{version}", files=form).json()
    assert [tag for tag, _ in _tags(result, 1)] == [tag["tag"] for tag in plain["tags"]]
