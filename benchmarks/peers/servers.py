"""The servers that a user might choose instead, each in a virtual environment of its own.

The environment is made once, from benchmarks/peers/NAME/requirements.txt, under .vlserve/bench.
Each serves the same unpacked archive by its own code, tuned alike: as many workers as cores, one
thread each, batches of up to 8 that wait 1 ms where the server has such a setting.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import CHECKOUT
from benchmarks.lib.photos import Photo
from benchmarks.lib.sides import (
    TUNED,
    Side,
    SideFailed,
    plain_environment,
    started,
    tree,
    wait_until_up,
)
from vlserve.processor import usable_cores
from vlserve.testing.stack import free_ports

FOLDER = Path(__file__).parent
CACHE = CHECKOUT / ".vlserve" / "bench"
PORTS = 4


@dataclass(frozen=True)
class Peer:
    """``body``: the kind of body that it takes raw image bytes in, as natively as it can.
    ``path``: where it answers. peers/NAME/server.py starts it, by the variables below."""

    name: str
    body: str
    path: str


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("triton", "v2-binary", "/v2/models/tagger/infer"),
        Peer("litserve", "form", "/predict"),
        Peer("mlserver", "v2-json", "/v2/models/tagger/infer"),
        Peer("bentoml", "item-list", "/tag"),
        Peer("ray", "form", "/tag"),
    )
}


@contextmanager
def peer_server(peer: Peer, folder: Path, archive: Path, photo: Photo) -> Iterator[Side]:
    """``archive``: unpacked. SideFailed when its environment cannot be made, or it does
    not start."""
    python = _environment(peer)
    port = free_ports(PORTS)
    environment = plain_environment(
        PATH=os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        TMPDIR=str(folder),
        **TUNED,
        BENCH_ARCHIVE=str(archive),
        BENCH_ANSWERING=str(FOLDER),
        BENCH_PORT=str(port),
        BENCH_WORKERS=str(usable_cores()),
    )
    program = [python, FOLDER / peer.name / "server.py"]
    with started(program, folder, environment) as server:
        url = f"http://127.0.0.1:{port}{peer.path}"
        side = Side(peer.name, url, lambda: tree(server.pid), body=peer.body)
        yield wait_until_up(side, server, photo, folder)


def _environment(peer: Peer) -> Path:
    """The Python of its virtual environment, which is made where it is not there as pinned."""
    requirements = FOLDER / peer.name / "requirements.txt"
    folder, pins = CACHE / peer.name, requirements.read_bytes()
    stamp, python = folder / "requirements.sha256", folder / "bin" / "python"
    digest = hashlib.sha256(pins).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "--no-deps", "--requirement", str(requirements)],
    )
    for command in commands:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, encoding="utf-8"
        )
        if process.returncode:
            words = " | ".join(process.stderr.strip().splitlines()[-3:])
            raise SideFailed(f"the environment of {peer.name} cannot be made: {words}")
    stamp.write_text(digest, encoding="utf-8")
    return python
