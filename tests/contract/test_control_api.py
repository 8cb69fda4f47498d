"""The control service over HTTP: its words, its errors, who may talk to it; and its client."""

import getpass
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.control_api_server import RunningControl
from vlserve.control.client import ControlClient, raised_class
from vlserve.control.domain import State
from vlserve.errors import (
    ArchiveError,
    ControlError,
    LoadFailed,
    ModelNotFound,
    NothingToRollBackTo,
    NotReady,
    StackError,
    StillServing,
    VersionConflict,
    VersionNotFound,
)
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.errors import ArchiveUnreadable


def test_the_verbs_in_a_user_s_order(control_api: RunningControl, archives: list[Path]) -> None:
    client = control_api.client
    assert client.is_up()
    assert client.models() == []
    registration = client.register(archives[0])
    assert (registration.version, registration.state, registration.already_registered) == (
        1,
        State.READY,
        False,
    )
    assert client.register(archives[0]).already_registered
    assert client.release("tagger", 1).previous is None
    client.register(archives[1])
    assert client.release("tagger", 2).previous == 1
    assert control_api.gateway.route().weights == {2: 100}
    rollback = client.rollback("tagger")
    assert (rollback.version, rollback.previous) == (1, 2)
    assert client.release("tagger", 2).version == 2
    assert client.unload("tagger", 1).state is State.RETIRED
    model = client.model("tagger")
    assert (model.stable, model.earlier, model.weights) == (2, (1,), {2: 100})
    assert [(each.version, each.state) for each in model.versions] == [
        (1, State.RETIRED),
        (2, State.STABLE),
    ]
    history = [(event.version, event.kind) for event in client.history("tagger")]
    assert history[:4] == [(1, "registered"), (1, "loading"), (1, "loaded"), (1, "released")]
    assert client.history("tagger")[0].detail["by"] == getpass.getuser()
    assert history[-4:] == [(1, "rolled_back"), (2, "released"), (1, "draining"), (1, "unloaded")]
    assert client.rollback("tagger", 1).version == 1
    assert list((control_api.settings.model_store / ".incoming").iterdir()) == []


REFUSALS: dict[str, tuple[Callable[[ControlClient], Any], type[ControlError], str]] = {
    "unknown model": (lambda c: c.release("cat", 1), ModelNotFound, "no model cat"),
    "its history": (lambda c: c.history("cat"), ModelNotFound, "no model cat"),
    "unknown version": (
        lambda c: c.release("tagger", 9),
        VersionNotFound,
        "tagger has no version 9 (there is 1)",
    ),
    "has traffic": (lambda c: c.unload("tagger", 1), StillServing, "tagger 1 has traffic"),
    "nothing before": (
        lambda c: c.rollback("tagger"),
        NothingToRollBackTo,
        "no earlier stable version",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_arrive_as_the_errors_they_are(
    control_api: RunningControl, archives: list[Path], case: str
) -> None:
    control_api.client.register(archives[0])
    control_api.client.release("tagger", 1)
    ask, kind, message = REFUSALS[case]
    with pytest.raises(kind) as error:
        ask(control_api.client)
    assert type(error.value) is kind
    assert message in str(error.value)


def test_archives_that_cannot_be_used_say_why(
    control_api: RunningControl, archives: list[Path], tmp_path: Path
) -> None:
    client, engine = control_api.client, control_api.engine
    fragment = tmp_path / "broken.mar"
    fragment.write_bytes(archives[0].read_bytes()[:1000])
    with pytest.raises(ArchiveUnreadable):
        client.register(fragment)
    cat = tmp_path / "cat-1.mar"
    cat.write_bytes(archives[0].read_bytes())
    with pytest.raises(ArchiveError, match="is tagger 1 by its manifest"):
        client.register(cat)
    engine.fail_to_load[("tagger", 1)] = "RuntimeError: no such graph"
    with pytest.raises(LoadFailed, match="no such graph"):
        client.register(archives[0])
    engine.fail_to_load.clear()
    client.register(archives[0])
    other = pack_echo(tmp_path, "tagger", 1, answer_shift=1)
    with pytest.raises(VersionConflict, match="registered from other bytes"):
        client.register(other)
    engine.answer_wrong.add(("tagger", 1))
    with pytest.raises(NotReady, match="not healthy"):
        client.release("tagger", 1)
    assert list((control_api.settings.model_store / ".incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("DELETE", "/models", {}, 405, "method_not_allowed"),
        ("GET", "/models/No%20Model", {}, 422, "request_invalid"),
        ("GET", "/models/cat", {}, 404, "model_not_found"),
        ("POST", "/models/cat/releases", {"json": {}}, 422, "request_invalid"),
        ("POST", "/models/cat/releases", {"json": {"version": 0}}, 422, "request_invalid"),
        (
            "POST",
            "/models/cat/releases",
            {"json": {"version": 1, "now": 7}},
            422,
            "request_invalid",
        ),
        ("POST", "/models/cat/release/stop", {"json": {}}, 422, "request_invalid"),
        ("GET", "/models/cat/release", {}, 404, "model_not_found"),
        ("POST", "/models/cat/rollback", {"json": {"verzion": 1}}, 422, "request_invalid"),
        ("POST", "/models/cat/versions/x/unload", {"json": {}}, 422, "request_invalid"),
        ("POST", "/models/cat/rollback", {}, 415, "unsupported_media_type"),
        (
            "POST",
            "/models/cat/rollback",
            {"content": "{}", "headers": {"content-type": "text/plain"}},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/versions", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ("POST", "/versions", {"files": {"a": b"b"}}, 415, "unsupported_media_type"),
        ("GET", "/models", {"headers": {"host": "evil.example"}}, 403, "forbidden"),
        ("GET", "/models", {"headers": {"origin": "http://evil.example"}}, 403, "forbidden"),
        (
            "POST",
            "/models/cat/rollback",
            {"json": {}, "headers": {"origin": "null"}},
            403,
            "forbidden",
        ),
    ],
)
def test_what_is_not_a_request_gets_a_clear_error(
    control_api: RunningControl,
    method: str,
    path: str,
    options: dict[str, Any],
    status: int,
    code: str,
) -> None:
    headers = options.get("headers", {}) | control_api.headers
    answer = httpx.request(
        method, control_api.url + path, trust_env=False, **options | {"headers": headers}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]


def test_an_archive_over_the_limit_is_refused_whether_it_says_its_size_or_not(
    control_api: RunningControl,
) -> None:
    headers = {"content-type": "application/octet-stream"} | control_api.headers
    chunk = bytes(100_000)
    for content in (chunk * 11, iter([chunk] * 11)):
        answer = httpx.post(
            f"{control_api.url}/versions", content=content, headers=headers, trust_env=False
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert list((control_api.settings.model_store / ".incoming").iterdir()) == []


def test_an_upload_that_is_cut_off_leaves_nothing(control_api: RunningControl) -> None:
    folder = control_api.settings.model_store / ".incoming"
    url = httpx.URL(control_api.url)
    head = "POST /versions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    head += f"Authorization: Bearer {control_api.key}\r\n"
    head += "Content-Type: application/octet-stream\r\n\r\nPK"
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(head.encode())
        while not list(folder.iterdir()):
            time.sleep(0.005)
    while list(folder.iterdir()):
        time.sleep(0.005)
    assert control_api.client.models() == []


def test_the_page_of_the_api_needs_no_network(control_api: RunningControl) -> None:
    with httpx.Client(base_url=control_api.url, trust_env=False) as http:
        page = http.get("/docs")
        assert page.status_code == 200
        assert "https://" not in page.text
        schema = http.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/health",
        "/traffic",
        "/console-links",
        "/models",
        "/models/{model}",
        "/models/{model}/history",
        "/versions",
        "/models/{model}/releases",
        "/models/{model}/release",
        "/models/{model}/release/{word}",
        "/models/{model}/rollback",
        "/models/{model}/versions/{version}/unload",
        "/models/{model}/versions/{version}/delete",
        "/models/{model}/marks",
        "/models/{model}/capture",
        "/models/{model}/capture/{word}",
        "/models/{model}/verdict",
        "/models/{model}/verdict/check",
        "/models/{model}/observations",
        "/batch-jobs",
        "/refusals",
        "/torchserve/api-description",
        "/torchserve/models",
        "/torchserve/models/{name}",
        "/torchserve/models/{name}/all",
        "/torchserve/models/{name}/{version}",
        "/torchserve/models/{name}/{version}/set-default",
    }
    assert schema["components"]["schemas"]["ReleaseRequest"]["examples"]


def test_health_says_what_is_missing(control_api: RunningControl) -> None:
    control_api.engine.down.add("engine-0")
    control_api.gateway.refuse = "not there"
    health = control_api.client.health()
    while health.engine_instances:
        health = control_api.client.health()
    assert "no engine instance answers" in health.status
    assert not health.gateway_ready
    assert control_api.client.is_up()


def test_without_a_service_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with ControlClient("http://127.0.0.1:9", tmp_path / "control.key") as client:
        assert not client.is_up()
        with pytest.raises(StackError, match="start it with `vlserve up`"):
            client.models()


def test_another_program_on_the_port_is_not_taken_for_the_service(
    control_api: RunningControl,
) -> None:
    key_file = control_api.settings.control_key_file
    with ControlClient(f"{control_api.url}/docs", key_file) as client:
        assert not client.is_up()
        with pytest.raises(ControlError):
            client.models()


def test_every_error_of_the_tree_survives_the_wire() -> None:
    kinds = [ControlError, ArchiveError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert raised_class(kind.code) is kind
    assert raised_class("internal_error") is ControlError
    assert len(kinds) > 12


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/tagger/releases", {"version": True}),
        ("/models/tagger/releases", {"version": 2, "changes": {"weights": [True, 100]}}),
        ("/models/tagger/releases", {"version": 2, "changes": {"shadow_percent": True}}),
        ("/models/tagger/releases", {"version": 2, "changes": {"minimum": {"pairs": True}}}),
        ("/models/tagger/releases", {"version": 2, "now": "yes please"}),
        ("/models/tagger/rollback", {"version": False}),
        ("/models/tagger/rollback", {"version": True}),
    ],
)
def test_true_is_no_number(
    control_api: RunningControl, archives: list[Path], path: str, body: dict[str, Any]
) -> None:
    for archive in archives[:2]:
        control_api.client.register(archive)
    control_api.client.release("tagger", 1)
    history = control_api.client.history("tagger")
    url = control_api.url + path
    answer = httpx.post(url, json=body, headers=control_api.headers, trust_env=False)
    assert answer.status_code == 422, answer.text
    assert control_api.client.history("tagger") == history


@pytest.mark.parametrize(
    ("raw", "status", "code", "message"),
    [
        (b"\xff{}", 400, "body_unreadable", "not JSON in UTF-8"),
        (b"[" * 100_000, 400, "body_unreadable", "nested too deeply"),
        (b'{"version": ' + b"[" * 100_000, 400, "body_unreadable", "nested too deeply"),
        (b"{", 422, "request_invalid", "JSON"),
        (b"", 422, "request_invalid", "required"),
        (b'{"version": 2, "changes": {"hold_s": Infinity}}', 422, "settings_error", "hold_s"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(
    control_api: RunningControl,
    archives: list[Path],
    raw: bytes,
    status: int,
    code: str,
    message: str,
) -> None:
    for archive in archives[:2]:
        control_api.client.register(archive)
    control_api.client.release("tagger", 1)
    headers = control_api.headers | {"content-type": "application/json"}
    url = f"{control_api.url}/models/tagger/releases"
    answer = httpx.post(url, content=raw, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert message in answer.json()["error"]["message"]


def test_a_name_that_no_model_has_is_named_in_the_path(control_api: RunningControl) -> None:
    for name in ("Tagger", "a b", "x" * 200):
        with pytest.raises(ControlError, match=f"no model is called '{name[:40]}"):
            control_api.client.model(name)
