"""Clients that ask without a pause while a test does something to the stack."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from vlserve.exporter.probes import drawn_image

NO_CONNECTION = 0
"""Instead of a status: the gateway was not there."""

QUESTION = {"image": drawn_image(0), "text": "cute cat"}


@dataclass(frozen=True)
class Asked:
    """One request of the load: when it was sent and answered, what was asked for and given."""

    sent: float
    answered: float
    wanted: int | None
    status: int
    version: int | None


@dataclass
class Load:
    """Keep-alive clients that ask without a pause: most of them the model, one a fixed version."""

    url: str
    model: str
    asked: list[Asked] = field(default_factory=list)
    done: bool = False

    def run(self, wanted: int | None) -> None:
        path = f"/predictions/{self.model}" + (f"/{wanted}" if wanted else "")
        with httpx.Client(base_url=self.url, timeout=60.0, trust_env=False) as http:
            while not self.done:
                sent = time.monotonic()
                try:
                    answer = http.post(path, json=QUESTION)
                    status, given = answer.status_code, answer.json().get("version")
                except httpx.TransportError:
                    status, given = NO_CONNECTION, None
                if status != 200:
                    time.sleep(0.02)  # leave the cores to what comes back
                self.asked.append(Asked(sent, time.monotonic(), wanted, status, given))


@contextmanager
def load_on(url: str, model: str, wanted: list[int | None]) -> Iterator[Load]:
    load = Load(url, model)
    clients = [threading.Thread(target=load.run, args=(each,)) for each in wanted]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        load.done = True
        for client in clients:
            client.join()
