"""From an archive of torch-model-archiver to a rollout and back, by docs/moving-from-torchserve.md
alone: archived, adopted, registered, stressed, released in steps beside a native version, taken
back. The clients' path and version stay."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from support.request_bodies import IMAGE, TEXT
from vlserve.exporter.echo import pack_echo
from vlserve.testing import RunningStack

pytestmark = [pytest.mark.export, pytest.mark.long, pytest.mark.on_triton(tier="long")]

HANDLER = '''
from ts.torch_handler.base_handler import BaseHandler


class Covers(BaseHandler):
    """Tags a title by its letters; it needs no network."""

    def initialize(self, context):
        self.manifest = context.manifest
        self.initialized = True

    def handle(self, data, context):
        return [self.tags(row.get("data") or row.get("body")) for row in data]

    def tags(self, asked):
        vowels = sum(asked["text"].count(vowel) for vowel in "aeiou")
        return {"tags": [{"tag": "vowels", "score": vowels / (1 + len(asked["text"]))}]}
'''
CALLERS = 60


class Reader:
    """Somebody who follows the page, in a folder of their own."""

    def __init__(self, stack: RunningStack, folder: Path) -> None:
        settings = stack.settings
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VLSERVE_PROJECT_DIR": str(settings.project_dir),
            "VLSERVE_GATEWAY": settings.gateway.model_dump_json(),
            "VLSERVE_ENGINE": settings.engine.model_dump_json(),
            "VLSERVE_CONTROL": settings.control.model_dump_json(),
        }

    def run(self, *words: str) -> str:
        result = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
        return result.stdout


def test_an_old_model_moves_in_and_a_new_version_is_released_beside_it(
    stack: RunningStack, new_model: str, tmp_path: Path
) -> None:
    reader = Reader(stack, tmp_path)
    (tmp_path / "handler.py").write_text(HANDLER, encoding="utf-8")
    requests = tmp_path / "requests"
    requests.mkdir()
    question = {"image": IMAGE, "text": TEXT}
    (requests / "one.json").write_text(json.dumps(question), encoding="utf-8")

    reader.run("torch-model-archiver", "--model-name", "CoverTagger", "--version", "1.0",
               "--handler", "handler.py", "--export-path", ".")  # fmt: skip
    reader.run("vlserve", "adopt", "CoverTagger.mar", "--requests", "requests", "--name", new_model,
               "--out", "build")  # fmt: skip
    reader.run("vlserve", "register", f"build/{new_model}-1.mar")
    reader.run("vlserve", "release", new_model, "1", "--now")
    for path in ("CoverTagger", "CoverTagger/1.0", new_model, f"{new_model}/1"):
        answer = stack.http.put(f"/predictions/{path}", json=question)
        assert answer.status_code == 200, answer.text
        assert answer.json()["tags"][0]["tag"] == "vowels"
        assert answer.json().keys() == {"tags"}, "a field was added to the handler's answer"
    key = stack.settings.control_key_file.read_text(encoding="utf-8").strip()
    description = httpx.get(
        f"{stack.settings.control_url}/torchserve/models/CoverTagger/1.0",
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    ).json()
    assert (description[0]["modelName"], description[0]["batchSize"]) == (new_model, 1)
    reader.run("vlserve", "stress", new_model, "--users", "2", "--duration", "1",
               "--max-p99-ms", "60000")  # fmt: skip

    pack_echo(tmp_path, new_model, 2)
    reader.run("vlserve", "register", f"{new_model}-2.mar")
    reader.run("vlserve", "release", new_model, "2", "--weights", "50,100")

    def versions() -> Counter[str]:
        answers = [
            stack.http.post(
                "/predictions/CoverTagger",
                json=question,
                headers={"X-Sticky-Key": f"caller-{number}"},
            )
            for number in range(CALLERS)
        ]
        assert {answer.status_code for answer in answers} == {200}
        return Counter(answer.headers["x-model-version"] for answer in answers)

    assert set(versions()) == {"1", "2"}
    assert new_model in reader.run("vlserve", "rollback", new_model)
    assert versions() == {"1": CALLERS}
