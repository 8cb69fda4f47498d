"""An engine's own word on which processes serve a version."""

import json
from pathlib import Path
from typing import Any

import httpx
import psutil

from vlserve.control.engine import triton_workers
from vlserve.control.engine.endpoints import Endpoint, endpoints
from vlserve.settings import Settings


def worker_pids(settings: Settings, model: str) -> dict[int, list[int]]:
    """Version -> the process ids of its ready workers, of the first instance; versions without
    workers are there too, on TorchServe."""
    endpoint = endpoints(settings)[0]
    of_kind = {"torchserve": _of_torchserve, "triton": _of_triton}
    return of_kind[endpoint.kind](endpoint, model)


def _of_torchserve(endpoint: Endpoint, model: str) -> dict[int, list[int]]:
    token = json.loads(endpoint.key_file.read_text(encoding="utf-8"))["management"]["key"]
    response = httpx.get(
        f"http://{endpoint.host}:{endpoint.management_port}/models/{model}/all",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    if response.status_code == httpx.codes.NOT_FOUND:
        return {}
    versions: list[dict[str, Any]] = response.raise_for_status().json()
    return {
        int(version["modelVersion"]): sorted(
            worker["pid"] for worker in version["workers"] if worker["status"] == "READY"
        )
        for version in versions
    }


def _of_triton(endpoint: Endpoint, model: str) -> dict[int, list[int]]:
    server = psutil.Process(int(endpoint.pid_file.read_text(encoding="utf-8")))
    versions = {
        _version_of(folder, model): sorted(worker.process.pid for worker in workers)
        for folder, workers in triton_workers.living(server).items()
    }
    return {version: pids for version, pids in versions.items() if version is not None}


def _version_of(code_folder: Path, model: str) -> int | None:
    name, _, version = code_folder.parent.name.rpartition("-")
    return int(version) if name == model else None
