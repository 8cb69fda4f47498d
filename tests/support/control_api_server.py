"""The control API as a real server on a free port, over an engine and a gateway in memory."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from support.control_fakes import FakeEngine, FakeGateway
from vlserve.control.api.app import create_app
from vlserve.control.api.connections import guarded_protocol
from vlserve.control.assembly import assemble
from vlserve.control.client import ControlClient
from vlserve.control.key import renew_key
from vlserve.settings import Settings
from vlserve.settings_sections import ControlSettings, TrustSettings
from vlserve.tls import trust_of

MAX_ARCHIVE_BYTES = 1_000_000


@dataclass(frozen=True)
class RunningControl:
    """The API at ``url``, and what it stands on."""

    url: str
    key: str
    client: ControlClient
    engine: FakeEngine
    gateway: FakeGateway
    settings: Settings

    @property
    def headers(self) -> dict[str, str]:
        """The header that a request needs."""
        return {"Authorization": f"Bearer {self.key}"}


@contextmanager
def running_control(
    folder: Path,
    protocol: type[asyncio.Protocol] | None = None,
    trust: TrustSettings | None = None,
    **settings_of_control: Any,
) -> Iterator[RunningControl]:
    """``protocol``: of connections; by default that of the service."""
    settings = Settings(
        project_dir=folder,
        control=ControlSettings(
            tick_s=0.05,
            drain_timeout_s=0.2,
            max_archive_bytes=MAX_ARCHIVE_BYTES,
            **settings_of_control,
        ),
        trust=trust or TrustSettings(),
    )
    engine, gateway = FakeEngine(), FakeGateway()
    control = assemble(settings, engine, gateway)
    key = renew_key(settings.control_key_file)
    app = create_app(control, settings, key)
    http = protocol or guarded_protocol()
    tls = settings.control_tls
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="on",
        http=http,
        ws="none",
        loop="vlserve.control.api.connections:TimedHandshakes",
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    with socket.create_server((settings.control.host, 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with ControlClient(url, settings.control_key_file, trust_of(tls)) as client:
                yield RunningControl(url, key, client, engine, gateway, settings)
        finally:
            server.should_exit = True
            thread.join()
