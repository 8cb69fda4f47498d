"""TLS for real: the gateway alone, and a whole stack that other machines may reach."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from support.certificates import TestCertificate
from support.fake_torchserve import FakeTorchServe
from support.running_stack import RunningGateway, make_settings, running_gateway
from vlserve.control.control_access import CA, KEY, URL
from vlserve.control.domain import ModelRoute
from vlserve.control.named_keys import NamedKeys, Role
from vlserve.exporter.echo import pack_echo
from vlserve.testing import running_stack


@pytest.fixture(scope="module")
def gateway(
    tls: TestCertificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("tls-gateway")
    files = {"tls_certificate": tls.certificate, "tls_key": tls.key}
    with running_gateway(folder, timeout_s=5.0, **files) as gateway:
        yield gateway


def test_the_gateway_answers_by_tls_and_not_without(
    gateway: RunningGateway, tls: TestCertificate
) -> None:
    port = gateway.settings.gateway.port
    with FakeTorchServe("engine-0", "token-of-0") as engine:
        gateway.route(ModelRoute("tagger", {1: 100}, [1]), to=[engine])
        url = f"https://localhost:{port}/predictions/tagger"
        trust = ssl.create_default_context(cafile=tls.certificate)
        answer = httpx.post(url, json={"text": "a"}, verify=trust, trust_env=False)
        assert answer.status_code == 200 and answer.headers["x-model-version"] == "1"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.post(url, json={"text": "a"}, trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.post(url.replace("https", "http"), json={"text": "a"}, trust_env=False)
    assert gateway.settings.gateway_url == f"https://127.0.0.1:{port}"
    assert gateway.http.get("/health").status_code == 200


@pytest.mark.parametrize(("offer", "choice"), [(["h2", "http/1.1"], "h2"), ([], None)])
def test_the_gateway_speaks_http_2_by_alpn(
    gateway: RunningGateway, tls: TestCertificate, offer: list[str], choice: str | None
) -> None:
    trust = ssl.create_default_context(cafile=tls.certificate)
    if offer:
        trust.set_alpn_protocols(offer)
    place = ("127.0.0.1", gateway.settings.gateway.port)
    with (
        socket.create_connection(place, timeout=30) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() == choice
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.long
def test_a_whole_stack_by_tls_from_another_machine(tls: TestCertificate, tmp_path: Path) -> None:
    """Its owner's commands, and those of a machine that has an address, a key and a certificate."""
    settings = make_settings(
        tmp_path, tls_certificate=tls.certificate, tls_key=tls.key, api_keys=("client",)
    )
    control = settings.control.model_copy(
        update={"host": "0.0.0.0", "tls_certificate": tls.certificate, "tls_key": tls.key}
    )
    settings = settings.model_copy(update={"control": control})
    key = NamedKeys(settings.model_store).add("ci", [Role.REGISTER, Role.RELEASE])
    archive = pack_echo(tmp_path, "tagger", 1)
    cover = tmp_path / "cover.jpg"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(cover, "JPEG")
    program = Path(sys.executable).with_name("vlserve")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if "VLSERVE" not in name}
    remote = {"VLSERVE_PROJECT_DIR": str(elsewhere), KEY: key, CA: str(tls.certificate)}
    local = {
        "VLSERVE_PROJECT_DIR": str(tmp_path),
        "VLSERVE_GATEWAY": settings.gateway.model_dump_json(),
        "VLSERVE_ENGINE": settings.engine.model_dump_json(),
        "VLSERVE_CONTROL": settings.control.model_dump_json(),
    }

    def run(variables: dict[str, str], *words: object) -> str:
        command = [str(program), *map(str, words)]
        result = subprocess.run(
            command,
            env=environment | variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    with running_stack(settings) as stack:
        remote[URL] = f"https://localhost:{settings.control.port}"
        run(remote, "register", archive)
        run(remote, "release", "tagger", 1)
        assert '"stable": 1' in run(remote, "status", "--json")
        assert run(local, "status").count("RUNNING") >= 3
        request = ("predict", "tagger", "--image", cover, "--text", "cat", "--json")
        answer = json.loads(run(local, *request))
        assert (answer["model"], answer["version"]) == ("tagger", 1)
        run(local, "stress", "tagger", "--users", 2, "--duration", 1, "--max-p99-ms", 60000)
        event = stack.control.history("tagger")[-1]
        assert (event.kind, event.detail["key"]) == ("released", "ci")
        up = run(local, "up")
        assert f"https://127.0.0.1:{settings.gateway.port}" in up
    files = [each for each in tmp_path.rglob("*") if each.is_file() and not each.is_symlink()]
    assert [each for each in files if key.encode() in each.read_bytes()] == []
