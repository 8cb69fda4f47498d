"""Triton's own server against our suite of V2, for the table of docs/v2.md."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from support.running_stack import PROJECT, wait_until
from support.running_triton import START_S, need_triton
from vlserve.stack.bare_triton import link_backend
from vlserve.stack.triton_program import triton_home
from vlserve.testing import free_ports

pytestmark = pytest.mark.triton

MODEL = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        given = [request.inputs()[0].to_dlpack() for request in requests]
        return [triton.InferenceResponse([triton.Tensor.from_dlpack("out", one)]) for one in given]
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "in", data_type: TYPE_FP32, dims: [4] }]
output [{ name: "out", data_type: TYPE_FP32, dims: [4] }]
"""
PAGE = (PROJECT / "docs" / "v2.md").read_text(encoding="utf-8")


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The ports of a bare tritonserver, of HTTP and of gRPC; its model answers with what it is
    asked."""
    need_triton()
    model, port = tmp_path / "repository" / "same" / "1", free_ports(2)
    model.mkdir(parents=True)
    (model / "model.py").write_text(MODEL, encoding="utf-8")
    (model.parent / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    home = Path(triton_home())
    command = [
        str(home / "bin" / "tritonserver"),
        f"--model-repository={tmp_path / 'repository'}",
        f"--backend-directory={link_backend(tmp_path, home)}",
        *("--http-address=127.0.0.1", f"--http-port={port}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={port + 1}", "--allow-metrics=false"),
    ]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
    }
    with (tmp_path / "triton.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def ready() -> bool:
        assert server.poll() is None, (tmp_path / "triton.log").read_text(encoding="utf-8")
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
        return False

    try:
        wait_until(ready, START_S)
        yield port, port + 1
    finally:
        server.terminate()
        server.wait(60)


def test_the_page_says_which_points_triton_s_server_lacks(ports: tuple[int, int]) -> None:
    http, grpc = (f"127.0.0.1:{port}" for port in ports)
    suite = [str(PROJECT / "tests" / "conformance" / "v2"), "--v2-url", f"http://{http}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *suite, "--v2-grpc", grpc]
    result = subprocess.run(
        [*command, "--v2-model", "same"],
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    failures = set(re.findall(r"^FAILED \S+::(test_\w+)", result.stdout, re.MULTILINE))
    assert failures == set(re.findall(r"`(test_\w+)`", PAGE)), result.stdout
