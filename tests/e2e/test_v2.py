"""The Open Inference Protocol on a real stack, asked by somebody else's client."""

import base64
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from support.engines import on_triton
from support.running_stack import PROJECT, wait_until
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.runtime import headers
from vlserve.runtime.archive import verify_archive
from vlserve.testing import RunningStack
from vlserve_worker.v2.messages import MAX_ITEMS

pytestmark = on_triton

MODEL, CANDIDATE, STABLE = "protocol", 2, 1
FAILS = "坏"
WITHIN_S = 120.0
KEYS = 200
MANY_SIGMAS = 45
"""More than six standard deviations of KEYS fair coins."""


@pytest.fixture(scope="module")
def serving_stack(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> RunningStack:
    """Version 1 in force, and version 2, which is like it; both fail on 坏."""
    folder = tmp_path_factory.mktemp("echo")
    for version in (STABLE, CANDIDATE):
        stack.control.register(pack_echo(folder, MODEL, version, fail_on_id=VOCABULARY[FAILS]))
    stack.control.release(MODEL, STABLE)
    return stack


@pytest.fixture(scope="module")
def client(serving_stack: RunningStack) -> Iterator[Any]:
    address = serving_stack.gateway_url.removeprefix("http://")
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def image(serving_stack: RunningStack) -> bytes:
    """A cover that the version answers: a probe's."""
    archive = serving_stack.settings.model_store / MODEL / str(STABLE) / f"{MODEL}-{STABLE}.mar"
    manifest = verify_archive(archive)
    return base64.b64decode(manifest.probes[0].fields["image"])


def titles(count: int) -> list[str]:
    return [f"a cat {number}" for number in range(count)]


def inputs_of(image: bytes, texts: list[str], binary: bool = True) -> list[Any]:
    columns = {
        "image": [image if binary else base64.b64encode(image)] * len(texts),
        "text": [text.encode() for text in texts],
    }
    inputs = []
    for name, values in columns.items():
        tensor = triton.InferInput(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=np.object_), binary_data=binary)
        inputs.append(tensor)
    return inputs


def asked_for(binary: bool) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in ("tag", "score")]


def plain(stack: RunningStack, image: bytes, text: str, **about: str) -> dict[str, Any]:
    answer = stack.http.post(
        f"/predictions/{MODEL}", files={"image": image}, data={"text": text}, headers=about
    )
    return dict(answer.raise_for_status().json())


def check_same(result: Any, expected: list[dict[str, Any]]) -> None:
    """Assert that V2's answer says what the plain ones say."""
    tags, scores = result.as_numpy("tag"), result.as_numpy("score")
    assert tags.shape == scores.shape == (len(expected), len(expected[0]["tags"]))
    for row, numbers, answer in zip(tags, scores, expected, strict=True):
        labels = [tag.decode() if isinstance(tag, bytes) else tag for tag in row]
        assert labels == [tag["tag"] for tag in answer["tags"]]
        assert numbers == pytest.approx([tag["score"] for tag in answer["tags"]], abs=1e-6)


def test_server_and_model_tell_of_themselves(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, str(CANDIDATE))
    assert not client.is_model_ready(MODEL, "9")
    assert client.get_server_metadata()["name"] == "vlserve"
    metadata = client.get_model_metadata(MODEL)
    assert {each["name"]: each["datatype"] for each in metadata["inputs"]} == {
        "image": "BYTES",
        "text": "BYTES",
    }
    assert {each["name"]: each["shape"] for each in metadata["outputs"]} == {
        "tag": [-1, -1],
        "score": [-1, -1],
    }


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_several_items_have_the_plain_form_s_answers(
    serving_stack: RunningStack, client: Any, image: bytes, binary_in: bool, binary_out: bool
) -> None:
    texts = titles(11)  # more than the engine batches
    expected = [plain(serving_stack, image, text) for text in texts]
    inputs = inputs_of(image, texts, binary_in)
    result = client.infer(MODEL, inputs, outputs=asked_for(binary_out), request_id="mine")
    check_same(result, expected)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (MODEL, "1", "mine")


def test_a_client_that_packs_its_body_is_read(
    serving_stack: RunningStack, client: Any, image: bytes
) -> None:
    result = client.infer(MODEL, inputs_of(image, ["a"]), request_compression_algorithm="gzip")
    check_same(result, [plain(serving_stack, image, "a")])


def test_parameters_are_fields_of_every_item(
    serving_stack: RunningStack, client: Any, image: bytes
) -> None:
    result = client.infer(MODEL, inputs_of(image, ["a", "b"]), parameters={"top_k": 2})
    assert result.as_numpy("score").shape == (2, 2)


def test_one_bad_item_fails_its_request_with_its_index(client: Any, image: bytes) -> None:
    for texts, status, words in (
        (["a", "\0", "c"], "400", "item 1: text_unreadable: "),
        (["a", "b", FAILS], "500", "item 2: inference_failed: "),
    ):
        with pytest.raises(InferenceServerException, match=words) as error:
            client.infer(MODEL, inputs_of(image, texts))
        assert error.value.status() == status


def test_with_partial_the_other_items_are_answered(
    serving_stack: RunningStack, client: Any, image: bytes
) -> None:
    texts = ["a", FAILS, "\0", "d"]
    result = client.infer(MODEL, inputs_of(image, texts), parameters={"partial": True})
    errors = [error.decode() for error in result.as_numpy("errors")]
    assert [error.partition(":")[0] for error in errors] == [
        "",
        "inference_failed",
        "text_unreadable",
        "",
    ]
    tags = result.as_numpy("tag")
    for at in (0, 3):
        expected = plain(serving_stack, image, texts[at])["tags"]
        assert [tag.decode() for tag in tags[at]] == [tag["tag"] for tag in expected]
    assert {*tags[1], *tags[2]} == {b""}


def test_too_many_items_are_refused_before_they_are_answered(client: Any, image: bytes) -> None:
    with pytest.raises(InferenceServerException, match=f"too_many_items: .*{MAX_ITEMS}") as error:
        client.infer(MODEL, inputs_of(image[:10], titles(MAX_ITEMS + 1)))
    assert error.value.status() == "413"


def test_a_video_is_no_image(client: Any, image: bytes) -> None:
    """What is refused before the archive is refused by item too."""
    tensor = triton.InferInput("video", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"no video"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="item 0: video_un"):
        client.infer(MODEL, [tensor, inputs_of(image, ["a"])[1]])


def test_our_suite_of_the_protocol_passes(serving_stack: RunningStack) -> None:
    suite = PROJECT / "tests" / "conformance" / "v2"
    address = serving_stack.gateway_url
    options = ["--v2-url", address, "--v2-grpc", address.removeprefix("http://")]
    options += ["--v2-model", MODEL]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(suite), *options]
    result = subprocess.run(
        command, cwd=PROJECT, capture_output=True, encoding="utf-8", timeout=200, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout and " passed" in result.stdout


def test_a_rollout_splits_v2_and_counts_each_item(
    serving_stack: RunningStack, client: Any, image: bytes
) -> None:
    """Half of the requests, the same callers in both forms; labels of each item."""
    policy = {"weights": [50, 100], "hold_s": 3600}
    serving_stack.control.start_rollout(MODEL, CANDIDATE, policy)
    try:
        versions: Counter[str] = Counter()
        for number in range(KEYS):
            key = {headers.STICKY_KEY: f"caller-{number}"}
            result = client.infer(MODEL, inputs_of(image, titles(2)), headers={**key})
            versions[result.get_response()["model_version"]] += 1
            if number % 20 == 0:
                expected = [plain(serving_stack, image, text, **key) for text in titles(2)]
                assert str(expected[0]["version"]) == result.get_response()["model_version"]
                check_same(result, expected)
        assert abs(versions["1"] - KEYS / 2) < MANY_SIGMAS

        def labels() -> int:
            windows = serving_stack.control.rollout(MODEL).windows
            both = itertools.chain.from_iterable((w.candidate, w.stable) for w in windows)
            return sum(sum(version.labels.values()) for version in both)

        wait_until(lambda: labels() >= 2 * KEYS, timeout_s=WITHIN_S)
        windows = serving_stack.control.rollout(MODEL).windows
        requests = sum(w.candidate.requests + w.stable.requests for w in windows)
        assert KEYS <= requests < 1.5 * KEYS
    finally:
        serving_stack.control.abort(MODEL)


def test_each_item_of_a_shadowed_request_is_a_pair(
    serving_stack: RunningStack, client: Any, image: bytes
) -> None:
    policy = {"weights": [50, 100], "shadow_percent": 100, "hold_s": 3600}
    serving_stack.control.start_rollout(MODEL, CANDIDATE, policy)
    try:
        for number in range(10):
            client.infer(MODEL, inputs_of(image, [f"{number}", "a cat", "a dog"]))

        def pairs() -> int:
            return sum(window.pairs for window in serving_stack.control.rollout(MODEL).windows)

        wait_until(lambda: pairs() >= 30, timeout_s=WITHIN_S)
        assert pairs() == 30
    finally:
        serving_stack.control.abort(MODEL)


def test_errors_have_v2_s_shape(serving_stack: RunningStack) -> None:
    answer = serving_stack.http.post(f"/v2/models/{MODEL}/infer", content=b"[")
    assert answer.status_code == 400
    assert answer.json() == {"error": answer.json()["error"]}
    assert answer.json()["error"].startswith("body_unreadable: ")
    assert "server-timing" in answer.headers
    assert answer.headers[headers.MODEL_VERSION] == "1"


def test_v2_answers_carry_what_plain_ones_do(serving_stack: RunningStack, image: bytes) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    picture = base64.b64encode(image).decode()
    body["inputs"].append({"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture]})
    answer = serving_stack.http.post(
        f"/v2/models/{MODEL}/versions/{CANDIDATE}/infer",
        json=body,
        headers={headers.REQUEST_ID: "mine"},
    )
    assert answer.status_code == httpx.codes.OK
    assert answer.headers[headers.REQUEST_ID] == "mine"
    assert answer.headers[headers.MODEL_VERSION] == str(CANDIDATE)
    assert {"decode", "infer", "engine"} <= {
        stage.partition(";")[0] for stage in answer.headers["server-timing"].split(", ")
    }
