"""KServe's SDK, in an environment of its own: it asks for older packages than ours."""

import base64
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.running_stack import PROJECT
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import verify_archive
from vlserve.testing import RunningStack

KSERVE = "kserve==0.21.0"

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the SDK, and borrows from this environment what the SDK takes as it is."""
    environment = tmp_path_factory.mktemp("kserve") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    [packages] = environment.glob("lib/*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", KSERVE], check=True, timeout=800)
    return python


def test_kserve_s_sdk_gets_the_plain_form_s_answers(
    stack: RunningStack, new_model: str, python: Path, tmp_path: Path
) -> None:
    archive = pack_echo(tmp_path, new_model, 1)
    stack.control.register(archive)
    stack.control.release(new_model, 1)
    image = tmp_path / "cover"
    image.write_bytes(base64.b64decode(verify_archive(archive).probes[0].fields["image"]))
    texts = ["a cat", "two dogs", "零基础"]
    program = PROJECT / "tests" / "support" / "kserve_questions.py"
    result = subprocess.run(
        [python, str(program), stack.gateway_url, new_model, str(image), *texts],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout.splitlines()[-1])
    rest, grpc = answers["rest"], answers["grpc"]
    for health in (rest, grpc):
        assert (health["live"], health["ready"], health["model_ready"]) == (True, True, True)
    for form in (rest["binary"], rest["json"], grpc["raw"], grpc["contents"]):
        assert form["id"] == "mine"
        for at, text in enumerate(texts):
            plain = stack.http.post(
                f"/predictions/{new_model}",
                files={"image": image.read_bytes()},
                data={"text": text},
            ).json()
            assert form["tag"][at] == [tag["tag"] for tag in plain["tags"]]
            scores = [tag["score"] for tag in plain["tags"]]
            assert form["score"][at] == pytest.approx(scores, abs=1e-6)
