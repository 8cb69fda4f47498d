"""TorchServe's own word on what it holds."""

import json
from typing import Any

import httpx

from vlserve.control.engine.endpoints import endpoints
from vlserve.settings import Settings


def worker_pids(settings: Settings, model: str) -> dict[int, list[int]]:
    """Version -> the process ids of its ready workers, of the first instance; versions without
    workers are there too."""
    endpoint = endpoints(settings)[0]
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
