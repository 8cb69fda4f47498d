"""Archives that must not be served: each is refused in its own words, leaves nothing of itself in
the engine, and the version that serves answers through it all as if nothing were there."""

import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.archive_members import Members
from support.background_load import QUESTION
from support.bad_archives import CONTRADICTING, FAILING, TAMPERED, UNREADABLE
from support.costly_zips import COSTLY
from support.engine_workers import worker_pids
from support.engines import on_triton
from support.forged_zips import FORGED
from support.member_edits import BadArchive, zipped
from support.raw_http import send
from support.running_stack import wait_until
from vlserve.control.domain import EngineKind, State
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.key import read_key
from vlserve.exporter.echo import pack_echo
from vlserve.exporter.pack import HANDLERS_DIR, draft_of, pack_archive
from vlserve.runtime.archive import verify_archive
from vlserve.testing import RunningStack

pytestmark = on_triton

MODEL = "bad-archives"
PERIOD_S = 0.1
"""Between two questions of the client that goes on: a file is looked at for about as long."""
REFUSED = [*UNREADABLE, *CONTRADICTING, *TAMPERED, *FORGED, *COSTLY]


@dataclass
class Watch:
    """A client that asks the serving version again and again, and what it had to complain of."""

    stack: RunningStack
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._expected = self._ask(f"/predictions/{MODEL}")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(PERIOD_S):
            self.ask()

    def ask(self) -> None:
        """Ask once by each path."""
        for path in (f"/predictions/{MODEL}", f"/predictions/{MODEL}/1"):
            try:
                answer = self._ask(path)
                if answer != self._expected:
                    self.complaints.append(f"{path} answered {answer}")
            except (httpx.HTTPError, ValueError) as error:
                self.complaints.append(f"{path}: {error!r}")

    def _ask(self, path: str) -> dict[str, Any]:
        response = self.stack.http.post(path, json=QUESTION).raise_for_status()
        return {name: value for name, value in response.json().items() if name != "request_id"}


@dataclass(frozen=True)
class Served:
    """Version 1 of the model serves. ``next``: the members of a good version 2."""

    stack: RunningStack
    next: Members
    workers: Mapping[int, list[int]]
    watch: Watch

    @property
    def key(self) -> dict[str, str]:
        """The header that a request to the control service needs."""
        return {"Authorization": f"Bearer {read_key(self.stack.settings.control_key_file)}"}

    def upload(self, raw: bytes, name: str = f"{MODEL}-2.mar") -> httpx.Response:
        return httpx.post(
            f"{self.stack.settings.control_url}/versions",
            params={"name": name},
            content=raw,
            headers={"Content-Type": "application/octet-stream", **self.key},
            timeout=120,
            trust_env=False,
        )

    def last_event(self) -> dict[str, Any]:
        return self.stack.control.history(MODEL)[-1].model_dump()

    def states(self) -> dict[int, State]:
        return {each.version: each.state for each in self.stack.control.model(MODEL).versions}

    def check_undisturbed(self) -> None:
        """The engine holds version 1 alone, by the same workers, and it goes on answering."""
        settings = self.stack.settings
        assert worker_pids(settings, MODEL) == self.workers
        files = endpoints(settings)[0].store.glob(f"{MODEL}-*")
        assert {file.name.split(".")[0] for file in files} == {f"{MODEL}-1"}
        assert list((settings.model_store / ".incoming").iterdir()) == []
        self.watch.ask()
        assert self.watch.complaints == []


@pytest.fixture(scope="module")
def target(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bad-archives")
    stack.control.register(pack_echo(folder, MODEL, 1))
    stack.control.release(MODEL, 1)
    with zipfile.ZipFile(pack_echo(folder, MODEL, 2)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with Watch(stack) as watch:
        workers = worker_pids(stack.settings, MODEL)
        assert [len(pids) for pids in workers.values()] == [stack.settings.engine.workers]
        yield Served(stack, members, workers, watch)


def _refusal(response: httpx.Response, status: int, code: str) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert error["message"].isprintable()  # one line, whatever was in the archive
    return str(error["message"])


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_what_can_be_told_from_the_file_is_refused(target: Served, bad: BadArchive) -> None:
    states = target.states()
    message = _refusal(target.upload(bad.make(target.next)), 422, bad.code)
    assert re.search(bad.says, message)
    assert str(target.stack.settings.model_store) not in message
    event = target.last_event()
    assert (event["kind"], event["version"]) == ("refused", None)
    assert event["detail"] == {"archive": f"{MODEL}-2.mar", "reason": message, "key": "owner"}
    assert target.states() == states
    target.check_undisturbed()


@pytest.mark.parametrize("name", [f"{MODEL}-3.mar", "second-2.mar", f"{MODEL}-02.mar"])
def test_a_file_named_after_another_version_is_refused(target: Served, name: str) -> None:
    states = target.states()
    message = _refusal(target.upload(zipped(target.next), name), 422, "manifest_invalid")
    assert message.startswith(f"{name} is {MODEL} 2 by its manifest")
    assert target.states() == states
    target.check_undisturbed()


@pytest.mark.parametrize("bad", FAILING, ids=lambda bad: bad.name)
def test_what_only_a_load_can_tell_fails(target: Served, bad: BadArchive) -> None:
    message = _refusal(target.upload(bad.make(target.next)), 422, bad.code)
    assert re.search(bad.says, message)
    event = target.last_event()
    assert (event["kind"], event["version"]) == ("failed", 2)
    assert event["detail"] == {"reason": message, "key": "owner"}
    assert target.states() == {1: State.STABLE, 2: State.FAILED}
    assert target.stack.control.model(MODEL).versions[1].reason == message
    target.check_undisturbed()


def test_other_bytes_under_the_serving_number_are_refused(target: Served, tmp_path: Path) -> None:
    other = pack_echo(tmp_path, MODEL, 1, answer_shift=1)
    message = _refusal(target.upload(other.read_bytes(), other.name), 409, "version_conflict")
    assert "versions never change" in message
    detail = {"archive": other.name, "reason": message, "key": "owner"}
    assert target.last_event()["detail"] == detail
    target.check_undisturbed()


def test_another_task_under_the_models_name_is_refused(target: Served, tmp_path: Path) -> None:
    handlers = tmp_path / "handlers"
    handlers.mkdir()
    entry_points = {name: name for name in ("torchserve_handler.py", "triton_model.py")}
    for name, source in {**entry_points, "sort.py": "tag.py"}.items():
        (handlers / name).write_text(
            (HANDLERS_DIR / source).read_text(encoding="utf-8"), encoding="utf-8"
        )
    draft = draft_of(verify_archive(pack_echo(tmp_path, MODEL, 2))) | {"task": "sort"}
    members = {
        name: raw for name, raw in target.next.items() if name.startswith(("graphs", "assets"))
    }
    other = pack_archive(tmp_path / "out", draft, members, handlers)
    message = _refusal(target.upload(other.read_bytes()), 409, "version_conflict")
    assert "answers task tag, this archive task sort" in message
    target.check_undisturbed()


def test_an_upload_that_breaks_off_leaves_nothing(target: Served) -> None:
    history, states = target.stack.control.history(MODEL), target.states()
    raw = zipped(target.next)
    head = (
        f"POST /versions?name={MODEL}-2.mar HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {target.key['Authorization']}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    folder = target.stack.settings.model_store / ".incoming"
    with socket.create_connection(("127.0.0.1", target.stack.settings.control.port)) as connection:
        connection.sendall(head.encode() + raw[: len(raw) // 2])
        wait_until(lambda: list(folder.iterdir()))
    wait_until(lambda: not list(folder.iterdir()))
    assert (target.stack.control.history(MODEL), target.states()) == (history, states)
    target.check_undisturbed()


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"headers": {"Content-Type": "application/json"}}, 415, "unsupported_media_type"),
        ({"files": {"archive": b"PK"}}, 415, "unsupported_media_type"),
        ({"params": {"name": "../../tagger-2.mar"}}, 422, "request_invalid"),
        ({"params": {"name": "two\nlines.mar"}}, 422, "request_invalid"),
        ({"params": {"name": "x" * 300}}, 422, "request_invalid"),
        ({"params": {"name": "9" * 100 + "-" + "9" * 100 + ".mar"}}, 422, "archive_unreadable"),
        ({}, 422, "archive_unreadable"),
    ],
    ids=["json", "form", "path", "two-lines", "long-name", "odd-name", "no-body"],
)
def test_what_is_no_upload_of_an_archive_is_refused(
    target: Served, how: dict[str, Any], status: int, code: str
) -> None:
    headers = {} if "files" in how else {"Content-Type": "application/octet-stream"}
    url = f"{target.stack.settings.control_url}/versions"
    with httpx.Client(trust_env=False, headers=headers | target.key) as http:
        _refusal(http.post(url, **how), status, code)
    target.check_undisturbed()


def test_an_archive_over_the_limit_is_refused_before_it_comes(target: Served) -> None:
    head = (
        "POST /versions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {target.key['Authorization']}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {2**40}\r\n\r\n"
    )
    reply = send(target.stack.settings.control.port, head.encode(), "POST")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "too_large")
    target.check_undisturbed()


@pytest.mark.parametrize(
    "bad",
    [UNREADABLE[1], CONTRADICTING[0], TAMPERED[0], FAILING[0]],
    ids=["unreadable", "contradicting", "tampered", "failing"],
)
def test_the_command_line_says_it_in_one_line(
    target: Served, tmp_path: Path, bad: BadArchive
) -> None:
    file = tmp_path / f"{MODEL}-2.mar"
    file.write_bytes(bad.make(target.next))
    result = subprocess.run(
        [Path(sys.executable).parent / "vlserve", "register", file],
        env={
            "VLSERVE_CONTROL__PORT": str(target.stack.settings.control.port),
            "VLSERVE_STATE_DIR": str(target.stack.settings.state_dir),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        encoding="utf-8",
    )
    assert (result.returncode, result.stdout) == (1, "")
    progress, refusal = result.stderr.splitlines()
    assert progress == f"registering {file.name}"
    assert refusal.startswith("vlserve: ")
    assert re.search(bad.says, refusal)
    target.check_undisturbed()


def test_the_number_is_still_free_for_a_good_archive(
    target: Served, engine_kind: EngineKind
) -> None:
    response = target.upload(zipped(target.next))
    assert response.json() == {
        "model": MODEL,
        "version": 2,
        "state": "ready",
        "already_registered": False,
        "retuned": False,
        "untuned": "",
        "restored": False,
        "engine": engine_kind,
        "signer": "",
    }
    assert target.states() == {1: State.STABLE, 2: State.READY}
    answer = target.stack.http.post(f"/predictions/{MODEL}/2", json=QUESTION)
    assert answer.json()["version"] == 2
    assert target.watch.complaints == []
