"""A real Triton behind a real gateway: what clients see of it is what they see of TorchServe."""

import json
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from support.drawn_videos import card, write_video
from support.edited_archives import with_edited_entry_points
from support.fake_torchserve import FakeTorchServe, Reply
from support.recorded import RECORDINGS, STORE, unpack
from support.request_bodies import JPEG
from support.running_stack import RunningGateway, wait_until
from support.running_triton import RunningTriton
from vlserve.control.domain import ModelRoute, Routing, Shadow
from vlserve.control.gateway.envoy_routes import MORE_RETRIES
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.manifest import TRITON_MODEL, Probe
from vlserve.runtime.task import difference
from vlserve_worker.video import FrameChoice, FrameReader, Place

STAGES = ["decode", "tokenise", "infer", "postprocess", "serialise", "engine"]


@pytest.fixture(scope="module")
def probe(echo_7: Path) -> Probe:
    return verify_archive(echo_7).probes[0]


@pytest.fixture
def http(envoy: RunningGateway, triton: RunningTriton) -> httpx.Client:
    routes = [ModelRoute("m", {7: 100}, (7,)), ModelRoute("gone", {1: 100}, (1,))]
    envoy.gateway.apply(Routing(routes, [triton.instance()]))
    return envoy.http


def test_an_answer_has_a_status_headers_and_a_body_of_its_own(
    http: httpx.Client, probe: Probe
) -> None:
    response = http.post("/predictions/m", json=probe.fields, headers={"x-request-id": "mine"})
    assert response.status_code == 200
    about = {"model": "m", "version": 7, "request_id": "mine"}
    assert response.json() == {**about, **probe.answer}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-model-version"] == "7"
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["content-length"]) == len(response.content)
    timing = ", ".join(response.headers.get_list("server-timing"))
    assert [entry.split(";")[0] for entry in timing.split(", ")] == STAGES
    foreign = [name for name in response.headers if name.startswith(("inference", "x-vlserve"))]
    assert not foreign


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 400, "body_unreadable"),
        (b"not JSON", {}, 400, "body_unreadable"),
        (b"{}", {"content-type": "application/json"}, 422, "field_invalid"),
        (b"x", {"content-type": "text/html"}, 400, "body_unreadable"),
        (b"x", {"content-type": b"text/\xff"}, 400, "body_unreadable"),
        (b"x", {"content-encoding": "gzip"}, 400, "body_unreadable"),
        (json.dumps({"image": "", "text": ""}).encode(), {}, 400, "image_unreadable"),
    ],
)
def test_a_bad_request_is_refused_once(
    http: httpx.Client,
    content: bytes,
    headers: dict[str, str | bytes],
    status: int,
    code: str,
) -> None:
    all_headers: dict[str, str | bytes] = {"x-request-id": "bad", **headers}
    response = http.post("/predictions/m", content=content, headers=all_headers)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "retry-after" not in response.headers


def test_what_the_model_fails_on_is_its_own_error(http: httpx.Client, probe: Probe) -> None:
    response = http.post("/predictions/m", json={**probe.fields, "text": "坏"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "inference_failed")


def test_triton_s_own_words_reach_no_client(envoy: RunningGateway, http: httpx.Client) -> None:
    response = http.post("/predictions/gone", json={}, headers={"x-request-id": "tried"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "version_unavailable")
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/json"
    assert envoy.access_line("tried")["tries"] == envoy.settings.gateway.retries + 1


def test_an_answer_may_be_larger_than_a_connection_s_buffer(
    envoy: RunningGateway, triton: RunningTriton, tmp_path: Path
) -> None:
    """As a heat map over a large cover; each is as long as its request's text says."""
    line = """result.bodies[:] = [b'"%s"' % (b"x" * int(item["text"])) for item in data]"""
    original = pack_echo(tmp_path, "large", 1)
    archive = with_edited_entry_points(
        original, tmp_path / "edited", "timing = result", line, ["triton_model.py"]
    )
    with triton.serving(archive):
        envoy.gateway.apply(Routing([ModelRoute("large", {1: 100}, (1,))], [triton.instance()]))
        for length in (1_500_000, 5_000_000):
            form = {"image": JPEG, "text": str(length).encode()}
            response = envoy.http.post("/predictions/large", files=form)
            assert response.status_code == 200, response.text[:300]
            assert response.json() == "x" * length


@pytest.mark.parametrize("recording", RECORDINGS)
def test_an_archive_of_earlier_code_is_answered_by_its_own_runtime(
    envoy: RunningGateway, triton: RunningTriton, recording: str, tmp_path: Path
) -> None:
    """It holds no triton_model.py: that which is installed stands in."""
    archive = unpack(recording, tmp_path) / STORE / "tagger" / "1" / "tagger-1.mar"
    manifest = verify_archive(archive)
    assert TRITON_MODEL not in manifest.files
    with triton.serving(archive):
        envoy.gateway.apply(Routing([ModelRoute("tagger", {1: 100}, (1,))], [triton.instance()]))
        for probe in manifest.probes:
            response = envoy.http.post("/predictions/tagger", json=probe.fields)
            assert response.status_code == 200, response.text
            assert difference(probe.answer, response.json()) is None


def test_a_video_is_answered_as_its_first_frame(http: httpx.Client, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", [card("red"), card("blue")])
    with FrameReader() as reader:
        frame = reader.read(Place(clip), FrameChoice()).jpeg

    def ask(**files: bytes) -> httpx.Response:
        return http.post("/predictions/m", files={**files, "text": b"cat cover"})

    by_video, by_frame = ask(video=clip.read_bytes()), ask(image=frame)
    assert by_video.status_code == by_frame.status_code == 200, by_video.text
    assert by_video.json()["tags"] == by_frame.json()["tags"]
    cut = ask(video=clip.read_bytes()[:300])
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "video_unreadable")


def test_an_old_token_is_tried_again(
    envoy: RunningGateway, triton: RunningTriton, probe: Probe
) -> None:
    stale = replace(triton.instance(), token="of-the-start-before")
    route = ModelRoute("m", {7: 100}, (7,))
    envoy.gateway.apply(Routing([route], [stale]))
    response = envoy.http.post("/predictions/m", json=probe.fields)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "version_unavailable")


def test_a_shadow_gets_its_copies(
    envoy: RunningGateway, triton: RunningTriton, probe: Probe
) -> None:
    route = ModelRoute("m", {7: 100}, (7,), step="1/shadow", shadow=Shadow(7, 100))
    envoy.gateway.apply(Routing([route], [triton.instance()]))
    response = envoy.http.post("/predictions/m", json=probe.fields)
    assert response.status_code == 200
    request_id = response.headers["x-request-id"]
    wait_until(lambda: request_id in envoy.shadow_log().read_text(encoding="utf-8"))
    (line,) = [
        line
        for line in envoy.shadow_log().read_text(encoding="utf-8").splitlines()
        if request_id in line
    ]
    assert (json.loads(line)["status"], json.loads(line)["version"]) == (200, "7")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(503, message="Exceeds maximum queue size"), "overloaded"),
        (Reply(503, message="Request timeout expired"), "overloaded"),
        (Reply(500, message="Failed to process the requests."), "engine_failed"),
        (Reply(400, message="unexpected inference input"), "engine_failed"),
        (
            Reply(400, message="Request for unknown model: 'm-7' is not found"),
            "version_unavailable",
        ),
        (Reply(404, message="Request for unknown model: 'm-7'"), "version_unavailable"),
        (Reply(403, message="This API is restricted"), "version_unavailable"),
        (Reply(200, message="no header says where the answer begins"), "engine_failed"),
        (Reply(0), "engine_unavailable"),
    ],
)
def test_what_triton_says_is_tried_again_and_becomes_the_common_shape(
    envoy: RunningGateway, engines: tuple[FakeTorchServe, ...], reply: Reply, code: str
) -> None:
    on_triton = [replace(engine.instance(), engine="triton") for engine in engines]
    envoy.gateway.apply(Routing([ModelRoute("m", {7: 100}, (7,))], on_triton))
    for engine in engines:
        engine.replies.extend([reply] * 10)
    response = envoy.http.post("/predictions/m", content=b"x", headers={"authorization": "mine"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, code)
    assert response.json()["error"]["message"]
    assert response.headers["retry-after"] == "1"
    requests = [request for engine in engines for request in engine.seen]
    lost_connection = not reply.status
    more = MORE_RETRIES if lost_connection else 0
    assert len(requests) == envoy.settings.gateway.retries + 1 + more
    assert {request.path for request in requests} == {"/v2/models/m-7/infer"}
    assert {request.headers["inference-header-content-length"] for request in requests} == {"0"}
    assert {request.headers["authorization"] for request in requests} <= {
        f"Bearer {e.token}" for e in engines
    }


@pytest.mark.parametrize(
    "message",
    [
        "Failed to process the request(s) for model instance 'worker-1', message: Stub process "
        "'worker-1' is not healthy.",
        "Failed to obtain the health mutex.",
    ],
)
def test_what_met_a_dead_worker_twice_waits_for_another_one(
    envoy: RunningGateway, engines: tuple[FakeTorchServe, ...], message: str
) -> None:
    on_triton = replace(engines[0].instance(), engine="triton")
    envoy.gateway.apply(Routing([ModelRoute("m", {7: 100}, (7,))], [on_triton]))
    dead, full = Reply(500, message=message), Reply(503, message="Exceeds maximum queue size")
    engines[0].replies.extend([dead] * 2 + [full] * 10)
    start = time.monotonic()
    response = envoy.http.post("/predictions/m", content=b"x")
    assert time.monotonic() - start >= 1.0
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert not [name for name in response.headers if name.startswith("x-vlserve")]
    assert len(engines[0].seen) == envoy.settings.gateway.retries + 1 == 4
    assert not [name for name in engines[0].seen[0].headers if name.startswith("x-envoy")]
