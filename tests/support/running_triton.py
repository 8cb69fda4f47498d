"""A real tritonserver on free loopback ports, which serves archives given at its start."""

import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.running_stack import wait_until
from vlserve.control.domain import Instance, Key
from vlserve.runtime.archive import unpack_archive
from vlserve.stack.bare_triton import link_backend
from vlserve.stack.triton_program import python_library_folder, triton_home, why_no_wheel_fits
from vlserve.testing import free_ports

MODEL = "from vlserve_worker.triton_model import TritonPythonModel  # noqa: F401\n"
TOKEN = "token-of-triton"
FORWARDED = "(?i)x-(request-id|vlserve-(content-type|content-encoding|path))"
CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 8
input [{{ name: "body" data_type: TYPE_UINT8 dims: [-1] allow_ragged_batch: true }}]
output [{{ name: "answer" data_type: TYPE_UINT8 dims: [-1] }}]
instance_group [{{ kind: KIND_CPU count: {workers} }}]
dynamic_batching {{}}
version_policy {{ all {{}} }}
{parameters}
"""
START_S = 120.0


@dataclass
class RunningTriton:
    """``pid``: of the server; stubs are its children."""

    url: str
    log: Path
    pid: int
    name: str = "triton-0"

    def instance(self, lacks: frozenset[Key] = frozenset()) -> Instance:
        port = int(self.url.rpartition(":")[2])
        return Instance(self.name, "127.0.0.1", port, TOKEN, lacks, engine="triton")


def need_triton() -> None:
    """Skip the test where no wheel of Triton fits the machine; elsewhere it must run."""
    if reason := why_no_wheel_fits():
        pytest.skip(reason)


@contextmanager
def running_triton(
    folder: Path,
    archives: Sequence[Path],
    workers: int = 1,
    parameters: Mapping[str, str] | None = None,
) -> Iterator[RunningTriton]:
    """Serve ``archives`` until the body ends; ``parameters`` are added to each configuration."""
    folder.mkdir(exist_ok=True)
    repository = folder / "repository"
    names = [_write_model(repository, folder, one, workers, parameters or {}) for one in archives]
    port, log = free_ports(3), folder / "triton.log"
    command = [
        str(triton_home() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={link_backend(folder)}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in names),
        "--disable-auto-complete-config",
        "--strict-readiness=false",
        "--exit-on-error=false",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        f"--http-header-forward-pattern={FORWARDED}",
        f"--http-restricted-api=inference:authorization=Bearer {TOKEN}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port + 1}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={port + 2}",
        "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name=vlserve-test-{port}-",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_ready(process, url, log), START_S)
        yield RunningTriton(url, log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in Path("/dev/shm").glob(f"vlserve-test-{port}-*"):
            left.unlink(missing_ok=True)


def _is_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))
    try:
        return httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _write_model(
    repository: Path, folder: Path, archive: Path, workers: int, parameters: Mapping[str, str]
) -> str:
    name = archive.stem
    model, _, version = name.rpartition("-")
    unpacked = folder / "unpacked" / name
    unpack_archive(archive, unpacked)
    code = repository / name / "1"
    code.mkdir(parents=True)
    (code / "model.py").write_text(MODEL, encoding="utf-8")
    py_compile.compile(str(code / "model.py"))  # a stub would write it, which counts as a change
    given = {"archive_dir": str(unpacked), "model": model, "version": version, **parameters}
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in given.items()
    )
    text = CONFIG.format(name=name, workers=workers, parameters=written)
    (repository / name / "config.pbtxt").write_text(text, encoding="utf-8")
    return name


def _environment() -> dict[str, str]:
    left_out = ("PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    libraries = str(python_library_folder())
    return environment | {
        "PATH": path,
        "LD_LIBRARY_PATH": libraries,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
