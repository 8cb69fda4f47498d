"""A gateway that copies requests for a shadow: what it routes, and the copies in its log.

Version 1 runs on the first engine, the shadow, version 2, on the second.
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx

from support.fake_torchserve import FakeTorchServe
from support.running_stack import RunningGateway, wait_until
from vlserve.control.domain import ModelRoute, Routing, Shadow

Engines = tuple[FakeTorchServe, FakeTorchServe]

ALL_COPIED = ModelRoute("tagger", {1: 100}, (1, 2), "release-7", "release-7/shadow", Shadow(2, 100))
NOT_COPIED = ModelRoute("tagger", {1: 100}, (1, 2), "release-7")
TIMEOUT_S = 1.0


def apply_copies(gateway: RunningGateway, engines: Engines, *models: ModelRoute) -> None:
    """Route models: version 1 on the first engine alone, version 2 on the second."""
    first = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    second = engines[1].instance(lacks=frozenset({("tagger", 1)}))
    gateway.gateway.apply(Routing(models, [first, second]))


def post(gateway: RunningGateway, request_id: str = "any", body: bytes = b"x") -> httpx.Response:
    """Ask tagger through the gateway."""
    headers = {"X-Request-Id": request_id}
    return gateway.http.post("/predictions/tagger", content=body, headers=headers)


def logged_copy(gateway: RunningGateway, request_id: str) -> Mapping[str, Any]:
    """Return the shadow log's line of one request, once it is written."""

    def lines() -> list[Mapping[str, Any]]:
        entries = [
            json.loads(line)
            for line in gateway.shadow_log().read_text(encoding="utf-8").splitlines()
        ]
        return [line for line in entries if line["request_id"] == request_id]

    wait_until(lines)
    (line,) = lines()
    return line
