"""The control service's door: who has its key, and which web pages are kept out."""

import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from support.control_api_server import RunningControl, running_control
from support.raw_http import send
from vlserve.control.client import ControlClient
from vlserve.control.key import read_key, renew_key
from vlserve.errors import Unauthorized

NOBODY = 65534
BYTES = {"content-type": "application/octet-stream"}
REQUESTS = [
    ("GET", "/health"),
    ("GET", "/traffic"),
    ("GET", "/refusals"),
    ("POST", "/console-links"),
    ("GET", "/models"),
    ("GET", "/models/tagger"),
    ("GET", "/models/tagger/history"),
    ("GET", "/models/tagger/release"),
    ("POST", "/models/tagger/releases"),
    ("POST", "/models/tagger/release/abort"),
    ("POST", "/models/tagger/rollback"),
    ("POST", "/models/tagger/versions/1/unload"),
    ("POST", "/models/tagger/versions/1/delete"),
    ("GET", "/models/tagger/marks"),
    ("GET", "/models/tagger/capture"),
    ("POST", "/models/tagger/capture"),
    ("POST", "/models/tagger/capture/abort"),
    ("GET", "/models/tagger/verdict"),
    ("POST", "/models/tagger/verdict/check"),
    ("POST", "/models/tagger/observations"),
    ("POST", "/batch-jobs"),
    ("POST", "/versions"),
    ("HEAD", "/models"),
    ("OPTIONS", "/models"),
    ("GET", "/torchserve/models"),
    ("POST", "/torchserve/models"),
    ("OPTIONS", "/torchserve/models"),
    ("GET", "/torchserve/models/tagger"),
    ("PUT", "/torchserve/models/tagger"),
    ("DELETE", "/torchserve/models/tagger"),
    ("GET", "/torchserve/models/tagger/all"),
    ("GET", "/torchserve/models/tagger/1"),
    ("PUT", "/torchserve/models/tagger/1"),
    ("DELETE", "/torchserve/models/tagger/1"),
    ("PUT", "/torchserve/models/tagger/1/set-default"),
    ("GET", "/torchserve/api-description"),
    ("GET", "/torchserve/nothing"),
    ("GET", "/nothing"),
    ("GET", "/docs/../models"),
    ("POST", "/docs"),
]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControl]:
    """One service for what never gets past its door."""
    with running_control(tmp_path_factory.mktemp("door")) as control:
        yield control


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer \u00e9".encode("latin-1")},
        {"authorization": "Basic {key}"},
        {"authorization": "{key}"},
        {"x-api-key": "{key}"},
    ],
    ids=["none", "empty", "wrong", "not-ascii", "basic", "bare", "another-header"],
)
def test_each_request_needs_the_key(
    door: RunningControl, method: str, path: str, credentials: dict[str, str | bytes]
) -> None:
    headers = {
        name: value.format(key=door.key) if isinstance(value, str) else value
        for name, value in credentials.items()
    }
    kind = BYTES if path == "/versions" else {"content-type": "application/json"}
    url = door.url + path
    answer = httpx.request(method, url, headers=kind | headers, content=b"", trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "unauthorized"
        assert "control.key" in answer.json()["error"]["message"]


def test_every_path_of_the_api_is_among_those(door: RunningControl) -> None:
    page = httpx.get(f"{door.url}/openapi.json", trust_env=False).json()
    calls = {(method, path) for method, path in REQUESTS}
    for path, operations in page["paths"].items():
        example = path.format(model="tagger", name="tagger", version=1, word="abort")
        assert {(method.upper(), example) for method in operations} <= calls


def test_a_request_without_the_key_registers_nothing(
    control_api: RunningControl, archives: list[Path]
) -> None:
    url = f"{control_api.url}/versions"
    for headers in (BYTES, BYTES | {"authorization": "Bearer wrong"}):
        raw = archives[0].read_bytes()
        answer = httpx.post(url, content=raw, headers=headers, trust_env=False)
        assert answer.status_code == 401
    assert control_api.client.models() == []
    assert list((control_api.settings.model_store / ".incoming").iterdir()) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every local user may enter, as a project in /srv is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_local_user_cannot_register(open_folder: Path, archives: list[Path]) -> None:
    """The port is in reach; the key's file can be neither read nor replaced."""
    with running_control(open_folder) as control:
        file = control.settings.control_key_file
        httpx.post(f"{control.url}/versions", trust_env=False)  # imports what the other cannot read
        child = os.fork()  # an interpreter of the other user's would have to be installed
        if child == 0:
            os._exit(_attack(file, control.url, archives[0].read_bytes()))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert control.client.models() == []


def _attack(key_file: Path, url: str, archive: bytes) -> int:
    """Return which attempt of another user got further than it should; 0 where none did."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    attempts: list[Callable[[], object]] = [
        key_file.read_text,
        lambda: key_file.write_text("mine", encoding="utf-8"),
        key_file.unlink,
        lambda: key_file.rename(key_file.with_name("other")),
    ]
    for number, attempt in enumerate(attempts, 1):
        with suppress(PermissionError):
            attempt()
            return number
    answer = httpx.post(f"{url}/versions", content=archive, headers=BYTES, trust_env=False)
    return 0 if answer.status_code == 401 else 5


def test_the_key_is_the_owner_s_alone_and_new_at_each_start(tmp_path: Path) -> None:
    keys = set()
    for _ in range(2):
        with running_control(tmp_path) as control:
            file = control.settings.control_key_file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            keys.add(control.key)
            assert control.client.models() == []
    assert len(keys) == 2
    assert all(len(key) >= 43 for key in keys)
    assert [each.name for each in file.parent.iterdir() if "key" in each.name] == ["control.key"]


def test_a_key_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "control.key"
    file.write_text("known to all\n", encoding="utf-8")
    file.chmod(0o644)
    key = renew_key(file)
    assert (read_key(file), stat.S_IMODE(file.stat().st_mode)) == (key, 0o600)
    assert key != "known to all"


def test_a_disk_that_takes_no_new_key_leaves_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback must be possible on a full disk, also after the service was started anew."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "control.key"
    before = renew_key(file)
    monkeypatch.setattr(Path, "replace", full)
    assert renew_key(file) == before
    assert [each.name for each in tmp_path.iterdir()] == ["control.key"]
    file.chmod(0o644)
    with pytest.raises(OSError, match="No space left"):
        renew_key(file)


def test_the_client_follows_a_new_key(tmp_path: Path) -> None:
    with running_control(tmp_path) as first:
        client = ControlClient(first.url, first.settings.control_key_file)
    with running_control(tmp_path) as second, client:
        client._http.base_url = second.url
        assert client.models() == []


@pytest.mark.parametrize("text", ["wrong\n", None])
def test_the_client_says_which_file_it_tried(
    door: RunningControl, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "other.key"
    if text:
        file.write_text(text, encoding="utf-8")
    with ControlClient(door.url, file) as client:
        assert client.is_up()
        with pytest.raises(Unauthorized, match=r"other\.key.*VLSERVE_PROJECT_DIR"):
            client.models()


def test_a_large_archive_with_a_wrong_key_is_told_the_reason(
    control_api: RunningControl, tmp_path: Path
) -> None:
    """The answer comes before the body is sent: the client must still read it."""
    file = tmp_path / "other.key"
    archive = tmp_path / "tagger-1.mar"
    with archive.open("wb") as sparse:
        sparse.truncate(300 * 1024 * 1024)
    with ControlClient(control_api.url, file) as client, pytest.raises(Unauthorized):
        client.register(archive)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_the_page_opens_without_the_key(door: RunningControl, path: str) -> None:
    with httpx.Client(base_url=door.url, trust_env=False) as http:
        page = http.get(path)
        assert page.status_code == 200
        assert page.headers["x-frame-options"] == "DENY"
        pieces = (
            re.findall(r'(?:src|href)="(/[^"]+)"', page.text) if path != "/openapi.json" else []
        )
        assert pieces or path == "/openapi.json"
        assert [http.get(piece).status_code for piece in pieces] == [200] * len(pieces)
        refusal = http.get(path, headers={"host": "evil.example"})
        assert refusal.status_code == 403


def test_the_page_has_a_field_for_the_key(door: RunningControl) -> None:
    page = httpx.get(f"{door.url}/openapi.json", trust_env=False).json()
    assert page["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for operations in page["paths"].values():
        assert all(operation["security"] == [{"key": []}] for operation in operations.values())


HOSTS = ["[::1", "localhost:x", "localhost:80:80", "a b", "[::1]]", "localhost@evil", "\u0661", ""]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_none_is_refused(door: RunningControl, host: str) -> None:
    reply = send(
        httpx.URL(door.url).port or 0,
        f"GET /models HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {door.key}\r\n\r\n".encode(),
        "GET",
    )
    assert reply.status in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8090", "LOCALHOST", "[::1]:8090"])
def test_hosts_of_loopback_are_answered(door: RunningControl, host: str) -> None:
    headers = door.headers | {"host": host}
    url = f"{door.url}/models"
    assert httpx.get(url, headers=headers, trust_env=False).status_code == 200
    page = headers | {"origin": f"http://{host}"}
    assert httpx.get(url, headers=page, trust_env=False).status_code == 200


def test_a_body_is_refused_by_its_size_before_it_is_read(door: RunningControl) -> None:
    url = httpx.URL(door.url)
    head = "POST /models/tagger/rollback HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {2**30}\r\n"
    for key, status in ((door.key, 413), ("wrong", 401)):
        reply = send(url.port or 0, f"{head}Authorization: Bearer {key}\r\n\r\n".encode(), "POST")
        assert reply.status == status
    chunks = iter([b" " * 65536] * 32)
    headers = door.headers | {"content-type": "application/json"}
    with socket.create_connection((url.host, url.port)):
        answer = httpx.post(
            f"{door.url}/models/tagger/rollback",
            content=chunks,
            headers=headers,
            trust_env=False,
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
