"""Slow bodies of one caller: what another is answered meanwhile, and what memory the gateway takes.

    .venv/bin/python -m benchmarks.endurance.slow_bodies --drip-s 0.5

A gateway of its own before a stand-in engine. `--bodies` clients at 127.0.0.2 each send all but
the end of a body of `--mib`, and then nothing, or a byte every `--drip-s`; who is thrown out begins
anew. A caller at 127.0.0.1 asks for predictions and /health without a pause. Exit code 1 when that
caller got anything but an answer or 503 `overloaded`, or fewer answers than refusals.
"""

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from vlserve.cli.output import print_line
from vlserve.control.domain import ModelRoute
from vlserve.testing.own_gateway import own_gateway
from vlserve.testing.stand_in_engine import stand_in

PATH = "/predictions/tagger"
HOG = ("127.0.0.2", 0)
PIECE = b"x" * 65_536
USUAL_BODY = b"x" * 150_000


def hold_a_body(port: int, size: int, drip_s: float, stop: threading.Event) -> None:
    """Send all but the end of a body of ``size``, and keep it open; begin anew when it is over."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30, HOG) as client:
            client.sendall(head.encode())
            for _ in range(size // len(PIECE) - 1):
                client.sendall(PIECE)
            client.settimeout(drip_s or 1.0)
            while not stop.is_set():
                with suppress(TimeoutError):
                    client.recv(4096)
                    break
                if drip_s:
                    client.sendall(b"x")


@contextmanager
def hogs(count: int, port: int, size: int, drip_s: float) -> Iterator[None]:
    """Hold ``count`` bodies open while the body runs."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=hold_a_body, args=(port, size, drip_s, stop)) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(http: httpx.Client, method: str, path: str) -> str:
    """Return what became of one request: answered, overloaded, or what else."""
    try:
        response = http.request(method, path, content=USUAL_BODY if method == "POST" else None)
    except httpx.TransportError as error:
        return type(error).__name__
    if response.status_code == 503 and '"overloaded"' in response.text:
        return "overloaded"
    return "answered" if response.status_code == 200 else f"HTTP {response.status_code}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bodies", type=int, default=120)
    parser.add_argument("--mib", type=float, default=31.9)
    parser.add_argument("--drip-s", type=float, default=0.0, help="0: nothing comes any more")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("slow_bodies.json"))
    return parser.parse_args()


def main() -> int:
    options = _options()
    outcomes: Counter[str] = Counter()
    largest = 0
    with tempfile.TemporaryDirectory() as folder, own_gateway(Path(folder)) as own:
        (envoy,) = [process for process in psutil.Process().children() if "envoy" in process.name()]
        port, size = own.settings.gateway.port, int(options.mib * 1024**2)
        with (
            stand_in("engine-0") as engine,
            httpx.Client(base_url=own.url, timeout=60.0, trust_env=False) as http,
        ):
            own.route([ModelRoute("tagger", {1: 100}, (1,))], [engine])
            with hogs(options.bodies, port, size, options.drip_s):
                ends = time.monotonic() + options.seconds
                while time.monotonic() < ends:
                    outcomes[ask(http, "POST", PATH)] += 1
                    outcomes[ask(http, "GET", "/health")] += 1
                    largest = max(largest, envoy.memory_info().rss)
    result = {"outcomes": dict(outcomes), "largest_mib": largest >> 20, "bodies": options.bodies}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_line(
        f"another caller: {dict(outcomes)}; the gateway's memory at most {largest >> 20} MiB"
    )
    others = outcomes.keys() - {"answered", "overloaded"}
    return 1 if others or outcomes["answered"] <= outcomes["overloaded"] else 0


if __name__ == "__main__":
    sys.exit(main())
