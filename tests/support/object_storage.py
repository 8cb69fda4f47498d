"""A storage of objects on loopback, in a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx
import pytest
from pyarrow.fs import FileSystem


@contextmanager
def object_storage(bucket: str) -> Iterator[str]:
    """Run moto's server; yields what follows the ``?`` of its paths. Credentials stand in the
    environment meanwhile, which workers inherit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*command, "-p", str(port)], **quiet)  # type: ignore[call-overload]
    query = f"endpoint_override={quote(url, safe='')}&region=us-east-1"
    try:
        _wait_for(url, server)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            uri = f"s3://{bucket}/key?{query}&allow_bucket_creation=true"
            FileSystem.from_uri(uri)[0].create_dir(bucket)
            yield query
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 120
    while True:
        try:
            httpx.get(f"{url}/moto-api/", timeout=5)
            return
        except httpx.HTTPError:
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.1)
