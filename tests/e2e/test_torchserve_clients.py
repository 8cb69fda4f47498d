"""Scripts and clients that were written for TorchServe, on a whole stack: they register, wait, ask,
move the default and unregister by its calls alone, with `requests` and curl as its documents do."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import requests

from support.engines import on_triton
from support.request_bodies import IMAGE, JPEG, TEXT
from support.running_stack import wait_until
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.testing import RunningStack

pytestmark = on_triton

WAIT_S = 120.0


class Script:
    """A script's two addresses, and its token."""

    def __init__(self, stack: RunningStack) -> None:
        self.store = stack.settings.model_store
        self.inference = stack.gateway_url
        self.management = f"{stack.settings.control_url}/torchserve"
        key = stack.settings.control_key_file.read_text(encoding="utf-8").strip()
        self.session = requests.Session()
        self.session.trust_env = False
        self.token = {"Authorization": f"Bearer {key}"}

    def manage(self, method: str, path: str, **parameters: str) -> requests.Response:
        url = f"{self.management}{path}"
        return self.session.request(
            method, url, params=parameters, headers=self.token, timeout=WAIT_S
        )

    def ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        response = self.session.request(method, f"{self.inference}{path}", timeout=WAIT_S, **how)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def put_into_store(self, archive: Path) -> str:
        """As a script copies a file into TorchServe's model store."""
        shutil.copy(archive, self.store)
        return archive.name


def _tags(answer: dict[str, Any]) -> Any:
    return [(tag["tag"], round(tag["score"], 6)) for tag in answer["tags"]]


def test_a_script_for_torchserve_works(stack: RunningStack, new_model: str, tmp_path: Path) -> None:
    script, model = Script(stack), new_model
    first, second = (
        script.put_into_store(pack_echo(tmp_path, model, version)) for version in (1, 2)
    )
    registration = script.manage(
        "POST", "/models", url=first, initial_workers="1", synchronous="true", batch_size="2"
    )
    assert registration.status_code == 200, registration.text
    assert registration.json()["status"] == (
        f'Model "{model}" Version: 1 registered with 1 initial workers'
    )
    assert script.session.get(f"{script.inference}/ping", timeout=WAIT_S).json() == {
        "status": "Healthy"
    }

    def describe(path: str = "") -> dict[str, Any]:
        response = script.manage("GET", f"/models/{model}{path}")
        assert response.status_code == 200, response.text
        version: dict[str, Any] = response.json()[0]
        return version

    def is_ready(path: str = "") -> bool:
        workers = describe(path)["workers"]
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)

    wait_until(is_ready, timeout_s=WAIT_S)
    assert describe()["batchSize"] == 2

    plain = script.ask("POST", f"/predictions/{model}", files={"image": JPEG}, data={"text": TEXT})
    assert plain["version"] == 1
    for method in ("POST", "PUT", "GET"):
        for how in (
            {"files": {"image": JPEG}, "data": {"text": TEXT}},
            {"json": {"image": IMAGE, "text": TEXT}},
            {"data": JPEG, "params": {"text": TEXT}},
        ):
            answer = script.ask(method, f"/predictions/{model}", **how)
            assert _tags(answer) == _tags(plain), (method, how)
    image = tmp_path / "cat.jpg"
    image.write_bytes(JPEG)
    curl = shutil.which("curl")
    assert curl, "curl is needed"
    url = f"{script.inference}/predictions/{model}/1?text={requests.utils.quote(TEXT)}"
    command = [curl, "-sf", "--noproxy", "*", "-H", "Expect: 100-continue", "-T", str(image), url]
    result = subprocess.run(command, capture_output=True, check=True, timeout=WAIT_S)
    assert _tags(json.loads(result.stdout)) == _tags(plain)

    further = script.manage("POST", "/models", url=second, initial_workers="1", synchronous="false")
    assert (further.status_code, further.json()) == (
        202,
        {"status": "Processing worker updates..."},
    )
    wait_until(lambda: is_ready("/2"), timeout_s=WAIT_S)
    assert (
        script.ask("PUT", f"/predictions/{model}", json={"image": IMAGE, "text": TEXT})["version"]
        == 1
    )
    again = script.manage("POST", "/models", url=second)
    assert (again.status_code, again.json()["type"]) == (409, "ConflictStatusException")
    assert script.manage("PUT", f"/models/{model}/2/set-default").status_code == 200
    answer = script.ask("PUT", f"/predictions/{model}", json={"image": IMAGE, "text": TEXT})
    assert answer["version"] == 2
    assert script.manage("DELETE", f"/models/{model}/2").status_code == 409
    removal = script.manage("DELETE", f"/models/{model}/1")
    assert (removal.status_code, removal.json()) == (
        200,
        {"status": f'Model "{model}" unregistered'},
    )
    assert script.manage("GET", f"/models/{model}/1").status_code == 404
    assert stack.control.model(model).weights == {2: 100}


def test_instances_of_v1_are_items(stack: RunningStack, new_model: str, tmp_path: Path) -> None:
    script = Script(stack)
    archive = pack_echo(tmp_path, new_model, 1, fail_on_id=VOCABULARY["坏"])
    assert script.manage("POST", "/models", url=script.put_into_store(archive)).ok
    texts = [TEXT, "a cat", *(f"cat {number}" for number in range(20))]
    path = f"/v1/models/{new_model}:predict"
    answer = script.ask(
        "POST", path, json={"instances": [{"image": IMAGE, "text": text} for text in texts]}
    )
    assert answer.keys() == {"predictions"}
    for text, prediction in zip(texts, answer["predictions"], strict=True):
        alone = script.ask("POST", f"/predictions/{new_model}", json={"image": IMAGE, "text": text})
        assert _tags(prediction) == _tags(alone)
        assert prediction["version"] == 1

    def refusal(*instances: Any) -> tuple[int, str]:
        response = script.session.post(
            f"{script.inference}{path}", json={"instances": list(instances)}, timeout=WAIT_S
        )
        return response.status_code, response.json()["error"]

    good = {"image": IMAGE, "text": TEXT}
    status, error = refusal(good, {"image": "!", "text": TEXT})
    assert status == 400 and error.startswith("instance 1: image_unreadable: ")
    status, error = refusal(good, good, 3)
    assert status == 400 and error.startswith("instance 2: ")
    assert refusal()[0] == 400
    assert refusal(*[good] * 65)[0] == 413
    status, error = refusal(good, {"image": IMAGE, "text": "坏"})
    assert status == 500 and error.startswith("instance 1: inference_failed: ")


def test_a_script_that_waits_for_its_workers_sees_them(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    script = Script(stack)
    url = script.put_into_store(pack_echo(tmp_path, new_model, 1))
    assert script.manage("POST", "/models", url=url).status_code == 200
    workers = stack.settings.engine.workers
    reply = script.manage(
        "PUT", f"/models/{new_model}", min_worker=str(workers), synchronous="true"
    )
    assert reply.json() == {"status": f"Workers scaled to {workers} for model: {new_model}"}
    models = script.manage("GET", "/models", limit="1000").json()["models"]
    assert {"modelName": new_model, "modelUrl": url} in models
    description = script.manage("GET", f"/models/{new_model}", customized="true").json()[0]
    assert description["customizedMetadata"]["task"] == "tag"
