"""Clients that ask again and again while a test does something to the stack."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from vlserve.exporter.probes import drawn_image

PAUSE_S = 0.01
"""Between two requests of a client, which leaves the cores to what the test does."""
NO_CONNECTION = 0
"""Instead of a status: the gateway was not there."""

QUESTION = {"image": drawn_image(0), "text": "cute cat"}


@dataclass(frozen=True)
class LoadRequest:
    """One request of the load: ``path_version`` was asked for, ``version`` answered. Times in s."""

    sent_at: float
    answered_at: float
    path_version: int | None
    status: int
    version: int | None


@dataclass
class Load:
    """Keep-alive clients that ask again and again: most of them the model, one a fixed version."""

    url: str
    model: str
    requests: list[LoadRequest] = field(default_factory=list)
    is_over: bool = False

    def run(self, version: int | None) -> None:
        path = f"/predictions/{self.model}" + (f"/{version}" if version else "")
        with httpx.Client(base_url=self.url, timeout=60.0, trust_env=False) as http:
            while not self.is_over:
                sent_at = time.monotonic()
                try:
                    answer = http.post(path, json=QUESTION)
                    status, answer_version = answer.status_code, answer.json().get("version")
                except httpx.TransportError:
                    status, answer_version = NO_CONNECTION, None
                request = LoadRequest(sent_at, time.monotonic(), version, status, answer_version)
                self.requests.append(request)
                time.sleep(PAUSE_S)


@contextmanager
def load_on(url: str, model: str, versions: list[int | None]) -> Iterator[Load]:
    load = Load(url, model)
    clients = [threading.Thread(target=load.run, args=(version,)) for version in versions]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        load.is_over = True
        for client in clients:
            client.join()
