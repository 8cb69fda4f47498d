"""Through the gateway to a real engine, with the control service in charge."""

import base64
import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from support.engine_workers import worker_pids
from support.engines import on_triton
from support.running_stack import admin_page, running_gateway, wait_until
from support.stepped_clock import SteppedClock
from vlserve.exporter.echo import pack_echo
from vlserve.stack import stack as control_stack
from vlserve.testing import RunningStack

pytestmark = on_triton(tier="long")


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


COVER = _jpeg()
FORM = {"files": {"image": ("cover.jpg", COVER, "image/jpeg")}, "data": {"text": "cat"}}
JSON = {"json": {"image": base64.b64encode(COVER).decode(), "text": "cat"}}
PART = b'Content-Disposition: form-data; name="text"\r\n\r\ncat\r\n'

NAMELESS = b"Content-Disposition: form-data\r\n\r\ncat\r\n"


@pytest.fixture(scope="module")
def path(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where an Echo tagger answers: version 1 has the traffic, version 2 is ready."""
    folder, model = tmp_path_factory.mktemp("archives"), "gateway-echo"
    for version in (1, 2):
        stack.control.register(pack_echo(folder, model, version, answer_shift=version))
    stack.control.release(model, 1)
    return f"/predictions/{model}"


@pytest.mark.parametrize("request_body", [FORM, JSON], ids=["form", "json"])
def test_a_prediction(stack: RunningStack, path: str, request_body: dict[str, object]) -> None:
    headers = {"X-Request-Id": "a-request-of-mine"}
    response = stack.http.post(path, headers=headers, **request_body)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("gateway-echo", 1)
    assert answer["request_id"] == response.headers["x-request-id"] == "a-request-of-mine"
    assert response.headers["x-model-version"] == "1"
    assert answer["tags"][0]["score"] >= answer["tags"][-1]["score"]


def test_a_path_of_4000_bytes_is_answered_and_a_longer_one_is_not_sent(
    stack: RunningStack, path: str
) -> None:
    query = f"{path}?text="
    longest = query + "c" * (4000 - len(query))
    headers = {"Content-Type": "image/jpeg"}
    response = stack.http.post(longest, content=COVER, headers=headers)
    assert response.status_code == 200, response.text
    refusal = stack.http.post(longest + "c", content=COVER, headers=headers)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (414, "path_too_long")
    assert "retry-after" not in refusal.headers


def test_each_version_answers_for_itself(stack: RunningStack, path: str) -> None:
    by_path = stack.http.post(f"{path}/2", **FORM)  # type: ignore[arg-type]
    by_header = stack.http.post(path, headers={"X-Model-Version": "2"}, **FORM)  # type: ignore[arg-type]
    stable = stack.http.post(path, **FORM)  # type: ignore[arg-type]
    assert by_path.json()["version"] == by_header.json()["version"] == 2
    assert by_path.json()["tags"] == by_header.json()["tags"] != stable.json()["tags"]


def test_the_clients_own_token_is_not_the_engines(stack: RunningStack, path: str) -> None:
    response = stack.http.post(path, headers={"Authorization": "Bearer mine"}, **FORM)  # type: ignore[arg-type]
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=b", b"--b\r\n" + NAMELESS + b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + PART),
        ("multipart/form-data; boundary=b", b"garbage"),
        ("multipart/form-data; boundary=", b"--\r\n" + PART + b"----\r\n"),
        ('multipart/form-data; boundary="', b"--b\r\n" + PART + b"--b--\r\n"),
        ("multipart/form-data; boundary=b; charset=nope", b"--b\r\n" + PART + b"--b--\r\n"),
        ("multipart/form-data", b"--b\r\n" + PART + b"--b--\r\n"),
        ("application/x-www-form-urlencoded", b"text=%zz"),
        ("application/json", b'{"image": "'),
        ("application/json", b"\xff\xfe"),
        ("text/plain", b"cat"),
        ("\xff\xfe/\x80", b"cat"),
        ("application/json", b""),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_the_clients_error(
    stack: RunningStack, path: str, content_type: str, body: bytes
) -> None:
    headers = [(b"Content-Type", content_type.encode("latin-1"))]
    response = stack.http.post(path, content=body, headers=headers)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["code"] in {"body_unreadable", "field_invalid"}
    assert response.json()["error"]["message"]


@contextmanager
def _callers(stack: RunningStack, path: str, count: int = 8) -> Iterator[Counter[object]]:
    """What ``count`` clients get that ask again and again: a status, or the name of an error."""
    stop, outcomes = threading.Event(), Counter[object]()

    def call() -> None:
        with httpx.Client(base_url=stack.gateway_url, timeout=60.0, trust_env=False) as http:
            while not stop.wait(0.005):
                try:
                    outcomes[http.post(path, **FORM).status_code] += 1  # type: ignore[arg-type]
                except httpx.TransportError as error:
                    outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_a_killed_worker_has_in_hand_is_answered(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    """It is slow, so that it is killed with a batch in hand: what TorchServe itself is gathering
    for a worker that dies meanwhile is dropped by it, and answered 504 by the gateway."""
    stack.control.register(pack_echo(tmp_path, new_model, 1, delay_ms=200))
    worker = _worker(stack, new_model)
    with _callers(stack, f"/predictions/{new_model}/1") as outcomes:
        wait_until(lambda: outcomes[200] > 20)
        worker.kill()
        before = outcomes[200]
        wait_until(lambda: outcomes[200] > before + 50, timeout_s=60)
    assert set(outcomes) == {200}, outcomes


def test_a_worker_killed_at_any_moment_leaves_no_request_unanswered(
    stack: RunningStack, path: str
) -> None:
    """At most the batch that TorchServe was gathering for it is answered late, and 504."""
    worker = _worker(stack, "gateway-echo")
    with _callers(stack, path) as outcomes:
        wait_until(lambda: outcomes[200] > 20)
        worker.kill()
        before = outcomes[200]
        wait_until(lambda: outcomes[200] > before + 50, timeout_s=60)
    assert set(outcomes) <= {200, 504}, outcomes
    assert outcomes[504] <= stack.settings.engine.batch_size


def test_a_killed_gateway_is_back_with_the_same_routing(stack: RunningStack, path: str) -> None:
    with _callers(stack, path, count=4) as outcomes:
        wait_until(lambda: outcomes[200] > 20)
        psutil.Process(_pid(stack, "gateway")).kill()
        wait_until(lambda: len(outcomes) > 1)
        before = outcomes[200]
        wait_until(lambda: outcomes[200] > before + 50, timeout_s=60)
    print("lost while the gateway was away:", {k: n for k, n in outcomes.items() if k != 200})
    assert {status for status in outcomes if isinstance(status, int)} == {200}
    assert stack.http.post(f"{path}/2", **FORM).json()["version"] == 2  # type: ignore[arg-type]


def _pid(stack: RunningStack, program: str) -> int:
    pids = {process.name: process.pid for process in control_stack.status(stack.settings)}
    pid = pids[program]
    assert pid
    return pid


def _worker(stack: RunningStack, model: str) -> psutil.Process:
    """A worker of version 1."""
    return psutil.Process(worker_pids(stack.settings, model)[1][0])


def test_a_start_of_the_gateway_is_told_from_another(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as own:
        first = own.gateway.start()
        assert first and own.gateway.start() == first
        own.stop()
        assert own.gateway.start() is None
        own.start()
        assert own.gateway.start() not in (None, first)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_step_of_the_clock_is_no_start_of_the_gateway(
    seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy's own uptime steps with the clock, so it would tell of a restart that was none."""
    clock = SteppedClock(tmp_path)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    with running_gateway(tmp_path) as own, admin_page(own.settings) as page:
        start, before = own.gateway.start(), _uptime_s(page)
        clock.step(seconds)
        wait_until(lambda: abs(_uptime_s(page) - before) > abs(seconds) / 2)
        assert own.gateway.start() == start
        assert own.gateway.ready()
        assert own.http.get("/health").status_code == 200
        own.stop()
        own.start()
        assert own.gateway.start() not in (None, start)


def _uptime_s(page: httpx.Client) -> float:
    uptime = str(page.get("/server_info").json()["uptime_current_epoch"])
    return float(uptime.removesuffix("s"))
