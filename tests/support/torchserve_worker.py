"""A real TorchServe worker process, spoken to as TorchServe's Java side does.

The frames are those of ts/protocol/otf_message_handler.py (torchserve 0.12).
"""

import importlib.util
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlserve.runtime.manifest import HANDLER

TORCHSERVE = Path(str(importlib.util.find_spec("ts").origin)).parent  # type: ignore[union-attr]
"""Found without importing it: its import leaves a file open."""

CONFIG = Path(__file__).parents[2] / "serving_config" / "torchserve"
END = struct.pack("!i", -1)


@dataclass(frozen=True)
class WorkerRequest:
    """One request of a batch; ``parts`` as multipart parts or one ``body``, a name twice too."""

    parts: Mapping[str, bytes] | Sequence[tuple[str, bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = "torchserves-own"


@dataclass(frozen=True)
class WorkerAnswer:
    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Worker:
    connection: socket.socket
    log: Path
    pid: int

    def load(self, folder: Path, batch_size: int = 8) -> tuple[int, str]:
        """Load an unpacked archive: status and message."""
        self.connection.sendall(
            b"L"
            + _text("m")
            + _text(str(folder))
            + struct.pack("!i", batch_size)
            + _text(HANDLER)
            + struct.pack("!i", -1)
            + _text("")
            + struct.pack("!?", False)
        )
        status, message = self._int(), self._bytes().decode()
        assert self._int() == -1
        return status, message

    def predict(self, batch: Sequence[WorkerRequest]) -> list[WorkerAnswer]:
        """One batch, answers in its order."""
        self.connection.sendall(b"I" + b"".join(_request(request) for request in batch) + END)
        status, message = self._int(), self._bytes().decode()
        assert status == 200, message
        answers = []
        for request in batch:
            assert self._bytes().decode() == request.id
            content_type, code, _ = self._bytes().decode(), self._int(), self._bytes()
            headers = {self._bytes().decode(): self._bytes().decode() for _ in range(self._int())}
            answers.append(WorkerAnswer(code, content_type, headers, self._bytes()))
        assert self._int() == -1
        return answers

    def _int(self) -> int:
        (value,) = struct.unpack("!i", self._exactly(4))
        return int(value)

    def _bytes(self) -> bytes:
        return self._exactly(self._int())

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.connection.recv(size - len(data))
            if not chunk:
                raise EOFError(self.log.read_text(encoding="utf-8"))
            data += chunk
        return data


def _text(value: str) -> bytes:
    return _raw(value.encode())


def _raw(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def _request(request: WorkerRequest) -> bytes:
    headers = b"".join(_text(name) + _text(value) for name, value in request.headers.items())
    pairs = list(request.parts.items()) if isinstance(request.parts, Mapping) else request.parts
    kind = "application/json" if "body" in dict(pairs) else "text/plain"
    parts = b"".join(_text(n) + _text(kind) + _raw(value) for n, value in pairs)
    return _text(request.id) + headers + END + parts + END


@contextmanager
def running_worker(folder: Path, scratch: Path) -> Iterator[Worker]:
    """The worker as TorchServe starts it: in the model's folder, which comes first on the path."""
    address = scratch / "sock.9000"
    log = scratch / "worker.log"
    environment: dict[str, Any] = dict(os.environ)
    environment |= {"PYTHONPATH": f"{folder}:", "TS_DECODE_INPUT_REQUEST": "false"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "vlserve_worker.worker"]
    command += [str(TORCHSERVE / "model_service_worker.py")]
    command += [
        "--sock-type",
        "unix",
        "--sock-name",
        str(address),
        "--metrics-config",
        str(CONFIG / "metrics.yaml"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with _connected(address, process, log) as connection:
            yield Worker(connection, log, process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _connected(
    address: Path, process: "subprocess.Popen[bytes]", log: Path
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        while True:
            try:
                connection.connect(str(address))
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text(encoding="utf-8")) from None
                time.sleep(0.02)
        yield connection
