"""Another program on control.port that answers 200 is not taken for the control service."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlserve.cli import app
from vlserve.cli.predict import request_prediction
from vlserve.control.client import ControlClient
from vlserve.errors import ControlError, StackError
from vlserve.settings import Settings

BODIES = [
    '{"status": "ok"}',
    "[]",
    '"ok"',
    "null",
    "1",
    "<html>hello</html>",
    '{"models": {}}',
    "[" * 10**5,
]
CALLS: dict[str, Callable[[ControlClient], Any]] = {
    "health": lambda c: c.health(),
    "models": lambda c: c.models(),
    "model": lambda c: c.model("tagger"),
    "history": lambda c: c.history("tagger"),
    "release": lambda c: c.release("tagger", 1),
    "start_rollout": lambda c: c.start_rollout("tagger", 1),
    "rollout": lambda c: c.rollout("tagger"),
    "abort": lambda c: c.abort("tagger"),
    "rollback": lambda c: c.rollback("tagger"),
    "unload": lambda c: c.unload("tagger", 1),
}


@contextmanager
def foreign_program(body: str, encoding: str = "identity") -> Iterator[int]:
    """Answers 200 with ``body``, said to be packed as ``encoding``, to everything; yields its
    port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-encoding", encoding)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", BODIES)
def test_no_word_takes_it_for_ours(tmp_path: Path, body: str) -> None:
    with (
        foreign_program(body) as port,
        ControlClient(f"http://127.0.0.1:{port}", tmp_path / "control.key") as client,
    ):
        assert not client.is_up()
        for name, call in CALLS.items():
            with pytest.raises(ControlError, match="belong to another program"):
                print(name, call(client))


def test_bytes_that_are_not_packed_as_they_say(tmp_path: Path) -> None:
    with foreign_program("no gzip", encoding="gzip") as port:
        client = ControlClient(f"http://127.0.0.1:{port}", tmp_path / "control.key")
        with client, pytest.raises(ControlError, match="belong to another program"):
            client.models()
        settings = Settings(project_dir=tmp_path, gateway={"port": port})  # type: ignore[arg-type]
        with pytest.raises(StackError, match="belong to another program"):
            request_prediction(settings, "tagger", {}, {})


@pytest.mark.parametrize("body", BODIES)
def test_no_answer_of_it_is_taken_for_a_prediction(tmp_path: Path, body: str) -> None:
    with foreign_program(body) as port:
        settings = Settings(project_dir=tmp_path, gateway={"port": port})  # type: ignore[arg-type]
        with pytest.raises(StackError, match="belong to another program"):
            request_prediction(settings, "tagger", {}, {})


def test_status_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with foreign_program('{"status": "ok"}') as port:
        settings = Settings(project_dir=tmp_path, control={"port": port})  # type: ignore[arg-type]
        monkeypatch.setattr("vlserve.running_settings.load_settings", lambda: settings)
        result = CliRunner().invoke(app, ["status", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "belong to another program" in result.stdout
    assert '"health": null' in result.stdout
