"""A stack's settings, and the gateway alone: free loopback ports, a folder of its own."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.fake_torchserve import FakeTorchServe
from vlserve.control.domain import EngineKind, ModelRoute
from vlserve.control.gateway.envoy_admin import EnvoyAdmin
from vlserve.control.gateway.envoy_config import admin_socket
from vlserve.settings import Settings
from vlserve.settings_sections import ControlSettings, EngineSettings, GatewaySettings
from vlserve.testing import with_free_ports
from vlserve.testing.own_gateway import OwnGateway
from vlserve.tls import trust_of

PROJECT = Path(__file__).parents[2]
ANY_LATENCY = 1e6
"""A margin under which no latency gate raises an alarm."""


def make_settings(
    folder: Path, kind: EngineKind = "torchserve", workers: int = 1, **gateway: Any
) -> Settings:
    """Return settings of a stack of its own on an engine of ``kind``, with a copy of
    serving_config/ to edit. A worker costs a second of processor time at each load.

    How long a request takes says how busy the machine is: the copy's policy tolerates any latency.
    """
    if not (folder / "serving_config").exists():
        shutil.copytree(PROJECT / "serving_config", folder / "serving_config")
        tolerate_latency(folder / "serving_config" / "rollout.yaml", ANY_LATENCY)
    return with_free_ports(
        Settings(
            project_dir=folder,
            gateway=GatewaySettings(**gateway),
            control=ControlSettings(tick_s=0.5),
            engine=EngineSettings(workers=workers, kind=kind),
        )
    )


def tolerate_latency(policy: Path, margin: float) -> None:
    """Write the margin of the latency gates into a rollout.yaml; 0.2 tolerates 20 %."""
    content = yaml.safe_load(policy.read_text(encoding="utf-8"))
    for gate in ("latency_p50", "latency_p99"):
        content["gates"][gate]["margin"] = margin
    policy.write_text(yaml.safe_dump(content), encoding="utf-8")


class RunningGateway:
    """A gateway of its own, a client of it, and its logs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._own = OwnGateway(settings, flush_ms=100)
        self.gateway = self._own.gateway
        self.http = httpx.Client(
            base_url=settings.gateway_url,
            timeout=30.0,
            trust_env=False,
            verify=trust_of(settings.gateway_tls),
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._own.process

    def start(self) -> None:
        self._own.start()

    def stop(self) -> None:
        self._own.stop()

    def close(self) -> None:
        self._own.close()
        self.http.close()

    def route(self, *models: ModelRoute, to: list[FakeTorchServe]) -> None:
        """Put these models in force, on these engines."""
        self._own.route(models, [engine.instance() for engine in to])

    def active(self) -> int:
        """Requests that the gateway has begun to receive and not answered."""
        with gateway_admin(self.settings) as admin:
            return admin.clients().active

    def access_log(self) -> Path:
        return self.settings.state_dir / "logs" / "access.jsonl"

    def access_line(self, request_id: str) -> Mapping[str, Any]:
        """The access log's line of one request, once it is written."""

        def lines() -> list[Mapping[str, Any]]:
            if not self.access_log().exists():
                return []
            text = self.access_log().read_text(encoding="utf-8")
            entries = [json.loads(line) for line in text.splitlines()]
            return [line for line in entries if line["request_id"] == request_id]

        wait_until(lines)
        (line,) = lines()
        return line

    def shadow_log(self) -> Path:
        return self.settings.state_dir / "logs" / "shadow.jsonl"


def admin_page(settings: Settings) -> httpx.Client:
    """Envoy's own page, byte by byte."""
    socket = httpx.HTTPTransport(uds=str(admin_socket(settings)))
    return httpx.Client(base_url="http://gateway", transport=socket, trust_env=False)


@contextmanager
def gateway_admin(settings: Settings) -> Iterator[EnvoyAdmin]:
    """The admin page of a running gateway."""
    with closing(EnvoyAdmin(admin_socket(settings))) as admin:
        yield admin


@contextmanager
def running_gateway(
    folder: Path, edit: Callable[[str], str] | None = None, **gateway: Any
) -> Iterator[RunningGateway]:
    """``edit``: changes the text of the gateway's envoy.yaml."""
    settings = make_settings(folder, **gateway)
    if edit is not None:
        file = settings.config_file("gateway/envoy.yaml")
        file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")
    server = RunningGateway(settings)
    try:
        yield server
    finally:
        server.close()


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once ``condition`` holds; fail the test when it does not in time. To ask takes the
    cores from what is waited for: the longer it takes, the more seldom it is asked."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s, f"not so after {timeout_s:g} s"
        time.sleep(min(0.1, max(0.02, waited_s / 20)))
