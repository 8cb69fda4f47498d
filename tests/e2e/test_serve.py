"""`vlserve serve`: one archive behind the gateway, in the foreground. Real processes."""

import base64
import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http

from support.background_load import QUESTION
from support.engines import on_triton
from support.running_stack import make_settings, wait_until
from support.served_archive import REFUSED, Served, asking, serving
from vlserve.control.domain import EngineKind
from vlserve.exporter.echo import pack_echo
from vlserve.settings import Settings
from vlserve.stack.stopping import processes

pytestmark = on_triton


@pytest.fixture
def settings(engine_kind: EngineKind, tmp_path: Path) -> Settings:
    return make_settings(tmp_path, engine_kind)


def test_it_answers_every_form_and_loses_nothing_at_sigterm(
    settings: Settings, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, "tagger", 3)
    with serving(settings, archive, "--json") as server:
        server.wait_until_ready()
        wait_until(lambda: '"gateway"' in server.said())
        plain = httpx.post(
            f"{settings.gateway_url}/predictions/tagger", json=QUESTION, trust_env=False
        ).json()
        assert (plain["model"], plain["version"]) == ("tagger", 3)
        tags = [tag["tag"] for tag in plain["tags"]]
        assert _by_v2(tritonclient.http, settings) == tags
        assert _by_v2(tritonclient.grpc, settings) == tags
        with asking(settings.gateway_url) as load:
            wait_until(lambda: len(load.outcomes) > 50)
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(120) == 0, server.said()
        assert set(load.outcomes) == {"200", REFUSED}
        statuses = _statuses_logged(server, "/predictions/tagger")
        assert set(statuses) == {200} and len(statuses) == load.outcomes.count("200") + 1
    assert not settings.model_store.exists()
    assert "every request was answered" in server.said()
    assert not processes(server.settings)


@pytest.mark.long
def test_what_dies_comes_back_and_what_was_verified_is_served(
    settings: Settings, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, "tagger", 3)
    with serving(settings, tmp_path) as server:  # the folder, which holds it alone
        server.wait_until_ready()
        archive.write_bytes(b"another file")
        engine = _engine(server)
        for process in (*engine.children(), engine):
            process.kill()
        wait_until(lambda: not server.is_ready(), 60)
        server.wait_until_ready()
        answer = httpx.post(
            f"{settings.gateway_url}/predictions/tagger", json=QUESTION, trust_env=False
        )
        assert answer.json()["version"] == 3
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        wait_until(lambda: not processes(server.settings), 60)


def _statuses_logged(server: Served, path: str) -> list[int]:
    """The statuses of what the gateway took at a path."""
    lines = [line for line in server.said().splitlines() if f'"path":"{path}"' in line]
    return [json.loads(line)["status"] for line in lines]


def _by_v2(client: ModuleType, settings: Settings) -> list[str]:
    """The tags that one of Triton's clients gets."""
    with client.InferenceServerClient(f"127.0.0.1:{settings.gateway.port}") as connection:
        assert connection.is_server_ready()
        inputs = [
            _column(client, "image", base64.b64decode(QUESTION["image"])),
            _column(client, "text", QUESTION["text"].encode()),
        ]
        (tags,) = connection.infer("tagger", inputs).as_numpy("tag")
    return [tag.decode() for tag in tags]


def _column(client: ModuleType, name: str, value: bytes) -> Any:
    tensor = client.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value], dtype=np.object_))
    return tensor


def _engine(server: Served) -> psutil.Process:
    """The server itself, whose children are the workers."""
    programs = {each.name(): each for each in processes(server.settings)}
    return programs.get("java") or programs["tritonserver"]
