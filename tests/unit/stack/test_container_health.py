"""The health check of docker-compose.yml says what it found in one line, whatever answers at the
gateway's port, and whatever lies in the store."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlserve.control.client import ControlClient
from vlserve.control.wire.views import ModelView
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import manifest_of
from vlserve.settings import Settings
from vlserve.stack.containers import gateway_failures

RELEASED = ModelView(model="tagger", stable=1, earlier=(), weights={1: 100}, versions=())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a stack that has released version 1 of ``tagger``."""
    monkeypatch.setattr(ControlClient, "models", lambda control: [RELEASED])
    settings = Settings(project_dir=tmp_path)
    folder = settings.model_store / "tagger" / "1"
    folder.mkdir(parents=True)
    pack_echo(folder, "tagger", 1)
    return settings


def archive(settings: Settings) -> Path:
    return settings.model_store / "tagger" / "1" / "tagger-1.mar"


def right_answer(settings: Settings) -> Mapping[str, Any]:
    probe = manifest_of(archive(settings)).probes[0]
    return {**probe.answer, "model": "tagger", "version": 1}


def test_the_right_answer_is_health(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = httpx.Response(200, json=right_answer(settings))
    monkeypatch.setattr(httpx, "post", lambda *_, **__: reply)
    assert gateway_failures(settings) == (["tagger 1 through the gateway"], [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>another program</html>", "answered 200: <html>another program"),
        (b"", "answered 200"),
        (b"[1]", r"answered 200: \[1\]"),
        (b"[" * 100_000, r"answered 200: \[\["),
        (b"{}", "the answer has no"),
        (b"\xff\xfe{", "answered 200"),
    ],
)
def test_another_answer_is_told(
    body: bytes, message: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = httpx.Response(200, content=body)
    monkeypatch.setattr(httpx, "post", lambda *_, **__: reply)
    failure, *_ = gateway_failures(settings)[1]
    assert re.search(message, failure)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip", "not a readable archive"), (b"", "not a readable archive"), (None, "no archive")],
)
def test_an_archive_that_cannot_be_read_is_told(
    content: bytes | None, message: str, settings: Settings
) -> None:
    if content is None:
        archive(settings).unlink()
    else:
        archive(settings).write_bytes(content)
    (failure,) = gateway_failures(settings)[1]
    assert message in failure


def test_bytes_that_are_packed_wrong_are_no_traceback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> httpx.Response:
        raise httpx.DecodingError("Error -3 while decompressing data")

    monkeypatch.setattr(httpx, "post", fail)
    (failure,) = gateway_failures(settings)[1]
    assert "does not answer: Error -3" in failure
