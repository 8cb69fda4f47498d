"""The wheel installed into an empty environment, beside its lock, and used as a user does."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installation import Installation
from vlserve.testing import free_ports

PROJECT = Path(__file__).parents[2]

LOCKS = ("requirements.lock", "cuda.lock")
"""As the README says: PyTorch of the package index asks for CUDA's libraries, also on a CPU."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("nothing")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    first = free_ports(8)
    ports = {
        "VLSERVE_GATEWAY__PORT": first,
        "VLSERVE_GATEWAY__ADMIN_PORT": first + 1,
        "VLSERVE_CONTROL__PORT": first + 2,
        "VLSERVE_ENGINE__BASE_PORT": first + 3,
    }
    empty = Installation(environment, folder, {name: str(port) for name, port in ports.items()})
    install = ["pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    locks = [word for name in LOCKS for word in ("-r", str(PROJECT / name))]
    empty.output([*install, "--no-deps", "--require-hashes", *locks], timeout_s=1500)
    empty.output([*install, "--no-deps", str(wheel)])
    yield empty
    empty.run(["vlserve", "down"], folder / "project")


def test_it_serves_from_a_folder_of_its_own(installation: Installation) -> None:
    start = time.monotonic()
    installation.output(["vlserve", "init", "project"])
    project = installation.folder / "project"

    def vlserve(*words: str | Path) -> str:
        return installation.output(["vlserve", *words], project, timeout_s=900)

    vlserve("up")
    answer = json.loads(vlserve("demo", "--json"))
    assert answer["answer"]["tags"][0]["score"] > 0
    vlserve("stress", "tagger", "--users", "2", "--duration", "1", "--max-p99-ms", "5000")
    checkpoint = ".vlserve/demo/checkpoint-2/model.safetensors"
    words = ("--name", "tagger", "--version", "3", "--out", "build", "--format", "torchscript")
    vlserve("export", "resnet_gru", "--checkpoint", checkpoint, *words)
    vlserve("register", "build/tagger-3.mar")
    models = json.loads(vlserve("status", "--json"))["models"]
    assert [version["version"] for version in models[0]["versions"]] == [1, 2, 3]
    assert (project / "model_store" / "tagger" / "3" / "tagger-3.mar").is_file()
    assert vlserve("down") == f"the stack of {project} is down\n"
    print(f"from `vlserve init` to `vlserve down`: {time.monotonic() - start:.0f} s")
