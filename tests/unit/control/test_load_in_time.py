"""What is said of workers that do not come up in time."""

import json
import time

import httpx
import pytest

from vlserve.control.engine import torchserve_grpc
from vlserve.control.engine.endpoints import endpoints
from vlserve.control.engine.torchserve_instance import TorchServeInstance
from vlserve.errors import LoadFailed
from vlserve.settings import Settings
from vlserve.settings_sections import EngineSettings

LIMIT_S, LONG_S = 0.05, 60.0


def _knows_nothing(request: httpx.Request) -> httpx.Response:
    return httpx.Response(404, json={"message": "no such model"})


@pytest.mark.parametrize(
    ("duration_s", "limit_s", "message"),
    [
        (
            LIMIT_S,
            LIMIT_S,
            r"48 workers \(engine.workers\) were not up after 0.05 s \(engine.load_timeout",
        ),
        (0.0, LONG_S, r"^it raises$"),
    ],
    ids=["late", "broken"],
)
def test_late_workers_are_blamed_on_their_number_and_the_limit(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    duration_s: float,
    limit_s: float,
    message: str,
) -> None:
    endpoint = endpoints(settings)[0]
    endpoint.folder.mkdir(parents=True)
    tokens = {purpose: {"key": "token"} for purpose in ("management", "inference")}
    endpoint.key_file.write_text(json.dumps(tokens), encoding="utf-8")

    def register(*_: object) -> None:
        time.sleep(duration_s)
        raise LoadFailed("it raises")

    monkeypatch.setattr(torchserve_grpc, "register", register)
    engine = EngineSettings(workers=48, load_timeout_s=limit_s)
    with httpx.Client(transport=httpx.MockTransport(_knows_nothing)) as http:
        instance = TorchServeInstance(endpoint, engine, http)
        with pytest.raises(LoadFailed, match=message):
            instance.load("tagger", 1, settings.model_store / "tagger-1.mar", None)
