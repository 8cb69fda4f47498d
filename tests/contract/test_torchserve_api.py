"""TorchServe's management API, as scripts call it: over HTTP, on an engine in memory.

`SAID_BY_TORCHSERVE` is what a stock TorchServe 0.12.0 said, word by word, to the same calls."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.control_api_server import RunningControl
from vlserve.exporter.echo import pack_echo

Answer = tuple[int, Any]

DESCRIBED = {
    *("modelName", "modelVersion", "modelUrl", "engine", "runtime", "minWorkers", "maxWorkers"),
    *("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "loadedAtStartup"),
    *("workers", "jobQueueStatus"),
}
WORKER = {"id", "startTime", "status", "memoryUsage", "pid", "gpu", "gpuUsage"}

NO_MODEL = "ModelNotFoundException"
NO_VERSION = "ModelVersionNotFoundException"
SAID_BY_TORCHSERVE: dict[tuple[str, str], tuple[int, str, str]] = {
    ("POST", "/models"): (400, "BadRequestException", "Parameter url is required."),
    ("POST", "/models?url=none.mar"): (404, NO_MODEL, "Model not found at: none.mar"),
    ("POST", "/models?url=../x.mar"): (
        404,
        NO_MODEL,
        "Relative path is not allowed in url: ../x.mar",
    ),
    ("POST", "/models?url=tagger-2.mar"): (
        409,
        "ConflictStatusException",
        "Model version 2 is already registered for model tagger",
    ),
    ("PUT", "/models/tagger?min_worker=2&max_worker=1"): (
        400,
        "BadRequestException",
        "max_worker cannot be less than min_worker.",
    ),
    ("GET", "/models/none"): (404, NO_MODEL, "Model not found: none"),
    ("PUT", "/models/none?min_worker=1"): (404, NO_MODEL, "Model not found: none"),
    ("PUT", "/models/none/1.0/set-default"): (404, NO_MODEL, "Model not found: none"),
    ("DELETE", "/models/none"): (404, NO_MODEL, "Model not found: none"),
    ("GET", "/models/tagger/9.0"): (
        404,
        NO_VERSION,
        "Model version: 9.0 does not exist for model: tagger",
    ),
    ("PUT", "/models/tagger/9.0?min_worker=1"): (
        404,
        NO_VERSION,
        "Model version: 9.0 does not exist for model: tagger",
    ),
    ("DELETE", "/models/tagger/9.0"): (
        404,
        NO_VERSION,
        "Model version: 9.0 does not exist for model: tagger",
    ),
    ("PUT", "/models/tagger/9.0/set-default"): (
        404,
        NO_VERSION,
        "Model version 9.0 does not exist for model tagger",
    ),
    ("GET", "/nothing"): (
        404,
        "ResourceNotFoundException",
        "Requested resource is not found, please refer to API document.",
    ),
    ("PATCH", "/models"): (
        405,
        "MethodNotAllowedException",
        "Requested method is not allowed, please refer to API document.",
    ),
}


class Script:
    """Calls as a script for TorchServe makes them: one base address, a token, no content type."""

    def __init__(self, control: RunningControl) -> None:
        self.control = control
        self.http = httpx.Client(base_url=f"{control.url}/torchserve", headers=control.headers)

    def __call__(self, method: str, path: str, **how: Any) -> Answer:
        response = self.http.request(method, path, **how)
        return response.status_code, response.json()

    def put_into_store(self, archive: Path) -> str:
        shutil.copy(archive, self.control.settings.model_store / archive.name)
        return archive.name


@pytest.fixture
def script(control_api: RunningControl) -> Iterator[Script]:
    script = Script(control_api)
    with script.http:
        yield script


@pytest.fixture
def script_of_two(script: Script, archives: list[Path]) -> Script:
    """tagger 1 with the traffic, and tagger 2 without, by TorchServe's calls alone."""
    for archive in archives[:2]:
        url = script.put_into_store(archive)
        assert script("POST", f"/models?url={url}&initial_workers=1&synchronous=true")[0] == 200
    return script


def _failure(answer: Answer) -> tuple[int, str, str]:
    status, body = answer
    assert body.keys() == {"code", "type", "message"}
    assert body["code"] == status
    return status, body["type"], body["message"]


def _weights(script: Script) -> dict[int, int]:
    return dict(script.control.client.model("tagger").weights)


def test_a_new_name_gets_the_traffic_and_a_further_version_does_not(
    script: Script, archives: list[Path]
) -> None:
    first, second = (script.put_into_store(archive) for archive in archives[:2])
    assert script("POST", f"/models?url={first}&initial_workers=1&synchronous=true") == (
        200,
        {"status": 'Model "tagger" Version: 1 registered with 1 initial workers'},
    )
    assert _weights(script) == {1: 100}
    assert script("POST", f"/models?url={second}&initial_workers=1&synchronous=false") == (
        202,
        {"status": "Processing worker updates..."},
    )
    assert _weights(script) == {1: 100}
    assert script("GET", "/models") == (
        200,
        {"models": [{"modelName": "tagger", "modelUrl": "tagger-1.mar"}]},
    )


def test_of_versions_that_come_at_once_the_first_alone_gets_the_traffic(
    script: Script, archives: list[Path]
) -> None:
    urls = [script.put_into_store(archive) for archive in archives[:3]]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda url: script("POST", f"/models?url={url}"), urls))
    assert [status for status, _ in answers] == [200] * 3
    events = [event.kind for event in script.control.client.history("tagger")]
    assert events.count("released") == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_parameters_come_in_the_query_or_as_json(
    script: Script, archives: list[Path], as_json: bool
) -> None:
    parameters: dict[str, Any] = {
        "url": script.put_into_store(archives[0]),
        "model_name": "tagger",
        "initial_workers": 3,
        "batch_size": 4,
        "max_batch_delay": 50,
        "response_timeout": 30,
        "synchronous": "true",
        "unknown": "passed over",
    }
    how: dict[str, Any] = {"json": parameters} if as_json else {"params": parameters}
    assert script("POST", "/models", **how)[0] == 200
    _, (description,) = script("GET", "/models/tagger")
    assert (description["batchSize"], description["maxBatchDelay"]) == (4, 50)
    assert (description["minWorkers"], description["maxWorkers"]) == (3, 3)
    settings = script.control.engine.served["tagger", 1]
    assert settings and (settings.workers, settings.batch_size, settings.max_batch_delay_ms) == (
        3,
        4,
        50,
    )


def test_versions_are_described_in_torchserve_s_names(script_of_two: Script) -> None:
    status, (description,) = script_of_two("GET", "/models/tagger")
    assert status == 200
    assert description.keys() == DESCRIBED
    assert (description["modelName"], description["modelVersion"]) == ("tagger", "1")
    assert description["modelUrl"] == "tagger-1.mar"
    assert description["runtime"] == "python"
    workers = description["workers"]
    assert {worker["status"] for worker in workers} == {"READY"}
    assert all(worker.keys() == WORKER for worker in workers)
    assert all(datetime.fromisoformat(worker["startTime"]) for worker in workers)
    assert len({worker["id"] for worker in workers}) == len(workers) > 0
    assert description["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}
    _, versions = script_of_two("GET", "/models/tagger/all")
    assert [each["modelVersion"] for each in versions] == ["1", "2"]
    for number in ("2", "2.0"):
        _, (second,) = script_of_two("GET", f"/models/tagger/{number}?customized=true")
        assert second["modelVersion"] == "2"
        assert second["customizedMetadata"]["task"] == "tag"


def test_models_are_listed_page_by_page(script_of_two: Script, tmp_path: Path) -> None:
    for name in ("captions", "zoo"):
        url = script_of_two.put_into_store(pack_echo(tmp_path, name, 1))
        assert script_of_two("POST", f"/models?url={url}")[0] == 200
    first = script_of_two("GET", "/models?limit=2")[1]
    assert [each["modelName"] for each in first["models"]] == ["captions", "tagger"]
    last = script_of_two("GET", f"/models?limit=2&next_page_token={first['nextPageToken']}")[1]
    assert last == {"models": [{"modelName": "zoo", "modelUrl": "zoo-1.mar"}]}
    assert script_of_two("GET", "/models?next_page_token=99")[1] == {"models": []}
    assert _failure(script_of_two("GET", "/models?limit=x"))[:2] == (400, "BadRequestException")


def test_the_default_version_is_the_released_one(script_of_two: Script) -> None:
    body = {"status": 'Default version successfully updated for model "tagger" to "2"'}
    assert script_of_two("PUT", "/models/tagger/2/set-default") == (200, body)
    assert _weights(script_of_two) == {2: 100}
    assert script_of_two("GET", "/models/tagger")[1][0]["modelVersion"] == "2"
    assert script_of_two.control.client.rollback("tagger").version == 1


def test_a_version_without_traffic_is_unloaded_and_can_come_back(script_of_two: Script) -> None:
    assert script_of_two("DELETE", "/models/tagger/2") == (
        200,
        {"status": 'Model "tagger" unregistered'},
    )
    assert _failure(script_of_two("GET", "/models/tagger/2")) == (
        404,
        "ModelVersionNotFoundException",
        "Model version: 2 does not exist for model: tagger",
    )
    assert script_of_two("POST", "/models?url=tagger-2.mar")[0] == 200
    assert script_of_two("GET", "/models/tagger/2")[1][0]["workers"]
    assert _weights(script_of_two) == {1: 100}


@pytest.mark.parametrize("path", ["/models/tagger", "/models/tagger/1"])
def test_a_version_with_traffic_stays_and_the_way_out_is_named(
    script_of_two: Script, path: str
) -> None:
    status, kind, message = _failure(script_of_two("DELETE", path))
    assert (status, kind) == (409, "ConflictStatusException")
    assert "release another version or roll back first" in message
    assert _weights(script_of_two) == {1: 100}


def test_workers_that_are_there_are_enough_and_others_are_not_made(script_of_two: Script) -> None:
    _, (description,) = script_of_two("GET", "/models/tagger")
    count = description["minWorkers"]
    for path in ("/models/tagger", "/models/tagger/2"):
        assert script_of_two("PUT", f"{path}?min_worker=1") == (
            202,
            {"status": "Processing worker updates..."},
        )
        assert script_of_two("PUT", f"{path}?min_worker=1&max_worker={count}&synchronous=true") == (
            200,
            {"status": f"Workers scaled to {count} for model: tagger"},
        )
        for query in (f"min_worker={count + 1}", "min_worker=0&max_worker=0"):
            status, kind, message = _failure(script_of_two("PUT", f"{path}?{query}"))
            assert (status, kind) == (501, "NotImplementedException")
            assert "vlserve unload tagger" in message and "/torchserve/models?url=" in message
    assert _failure(script_of_two("PUT", "/models/tagger?min_worker=2&max_worker=1")) == (
        400,
        "BadRequestException",
        "max_worker cannot be less than min_worker.",
    )


def test_what_does_not_go_is_said_as_torchserve_says_it(
    script_of_two: Script, archives: list[Path]
) -> None:
    for (method, path), failure in SAID_BY_TORCHSERVE.items():
        assert _failure(script_of_two(method, path)) == failure, path


@pytest.mark.parametrize(
    ("parameters", "status", "word"),
    [
        ({"url": "tagger-3.mar", "model_name": "other"}, 400, "called tagger, not other"),
        ({"url": "tagger-3.mar", "handler": "h.py"}, 400, "vlserve adopt"),
        ({"url": "tagger-3.mar", "response_timeout": "9999"}, 400, "response_timeout_s"),
        ({"url": "tagger-3.mar", "batch_size": "0"}, 400, "batch_size"),
        ({"url": "tagger-3.mar", "initial_workers": "9999"}, 400, "initial_workers"),
        ({"url": "legacy.mar"}, 400, "vlserve adopt"),
        ({"url": "x" * 3000}, 400, "url"),
    ],
)
def test_what_cannot_be_registered_is_refused_and_changes_nothing(
    script_of_two: Script, archives: list[Path], parameters: dict[str, str], status: int, word: str
) -> None:
    script_of_two.put_into_store(archives[2])
    with zipfile.ZipFile(script_of_two.control.settings.model_store / "legacy.mar", "w") as legacy:
        legacy.writestr("MAR-INF/MANIFEST.json", "{}")
    for how in ({"params": parameters}, {"json": parameters}):
        code, _, message = _failure(script_of_two("POST", "/models", **how))
        assert code == status
        assert word in message
    assert [each.version for each in script_of_two.control.client.model("tagger").versions] == [
        1,
        2,
    ]


def test_a_version_that_does_not_load_is_torchserve_s_500(
    script_of_two: Script, archives: list[Path]
) -> None:
    script_of_two.control.engine.fail_to_load["tagger", 3] = "no graph"
    url = script_of_two.put_into_store(archives[2])
    status, kind, message = _failure(script_of_two("POST", f"/models?url={url}&initial_workers=1"))
    assert (status, kind) == (500, "InternalServerException")
    assert "no graph" in message
    assert script_of_two("GET", "/models/tagger/3")[0] == 404
    del script_of_two.control.engine.fail_to_load["tagger", 3]
    assert script_of_two("POST", f"/models?url={url}")[0] == 200


def test_a_body_that_is_no_json_is_refused(script: Script) -> None:
    for body in (b"{", b"[" * 100_000, b"\xff", b"3", b'{"url": 3}'):
        answer = script(
            "POST", "/models", content=body, headers={"Content-Type": "application/json"}
        )
        assert _failure(answer)[:2] == (400, "BadRequestException")


def test_no_other_file_is_read(script: Script, archives: list[Path], tmp_path: Path) -> None:
    store = script.control.settings.model_store
    outside = tmp_path / "outside" / "tagger-1.mar"
    outside.parent.mkdir()
    shutil.copy(archives[0], outside)
    (store / "link.mar").symlink_to(outside)
    os.mkfifo(store / "pipe.mar")
    for url, status in (
        (f"../outside/{outside.name}", 404),
        (str(outside), 404),
        (f"file://{outside}", 400),
        (f"file:///{store}/../outside/{outside.name}", 400),
        (f"file://elsewhere{outside}", 400),
        ("http://127.0.0.1:9/tagger-1.mar", 400),
        ("ftp://127.0.0.1/tagger-1.mar", 400),
        ("http://[/tagger-1.mar", 400),
        ("..", 404),
        (".incoming", 404),
        ("ledger.sqlite", 404),
        ("link.mar", 404),
        ("pipe.mar", 404),
        ("tagger-1.mar\0", 400),
    ):
        answer = script("POST", "/models", params={"url": url})
        assert _failure(answer)[0] == status, url
    assert script("GET", "/models")[1] == {"models": []}


def test_the_key_is_asked_for_and_pages_of_others_are_refused(script: Script) -> None:
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        assert script("GET", "/models", headers=headers)[0] == 401
        assert script("POST", "/models?url=tagger-1.mar", headers=headers)[0] == 401
    foreign = script("GET", "/models", headers={"Origin": "http://evil.test"})
    assert foreign[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/workflows", 501, "one after the other"),
        ("POST", "/workflows?url=flow.war", 501, "one after the other"),
        ("GET", "/metrics", 501, "/stats/prometheus"),
        ("GET", "/token?type=management", 501, "control.key"),
        ("GET", "/nothing", 404, "not found"),
        ("PATCH", "/models/tagger", 405, "not allowed"),
        ("DELETE", "/models", 405, "not allowed"),
    ],
)
def test_other_calls_say_what_does_it_here(
    script: Script, method: str, path: str, status: int, word: str
) -> None:
    code, _, message = _failure(script(method, path))
    assert code == status
    assert word in message


def test_options_describes_these_calls_alone(script: Script) -> None:
    for path in ("", "/models", "/models/tagger"):
        status, page = script("OPTIONS", path)
        assert status == 200
        assert page["openapi"]
        assert "/torchserve/models" in page["paths"]
        assert all(each.startswith("/torchserve") for each in page["paths"])
